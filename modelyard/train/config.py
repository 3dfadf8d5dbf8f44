"""How to train. Torch is not imported here, so that forms and presets can be checked without it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from modelyard.artifacts import Frozen
from modelyard.models.config import MlpConfig, ModelConfig


class OptimizerConfig(Frozen):
    """An optimizer by name. ``momentum`` is sgd's; adam and adamw keep torch's betas."""

    name: Literal["sgd", "adam", "adamw"] = "adam"
    learning_rate: float = Field(1e-3, gt=0, le=100)
    weight_decay: float = Field(0.0, ge=0)
    momentum: float = Field(0.0, ge=0, lt=1)


class TrainConfig(Frozen):
    """Config of the training stage.

    Attributes:
        batch_size: rows per step over all ranks together.
        target: stop as soon as the task's headline metric on the validation split reaches this; None trains
            ``max_epochs`` and keeps the best epoch.
        ranks: processes that share each step.
        max_restarts: how often the launcher restarts the group after a lost rank.
        silence_seconds: a group that says nothing for so long is taken for hung, ended and tried again.
    """

    model: ModelConfig = MlpConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    batch_size: int = Field(64, ge=1)
    max_epochs: int = Field(40, ge=1, le=100_000)
    target: float | None = None
    seed: int = Field(0, ge=0, lt=2**31)
    ranks: int = Field(2, ge=1, le=64)
    checkpoint_every_epochs: int = Field(1, ge=1)
    max_restarts: int = Field(6, ge=0, le=100)
    silence_seconds: float = Field(120, gt=0)

    def identity(self) -> dict[str, Any]:
        """The part of the config that the trained weights depend on."""
        return self.model_dump(mode="json", exclude={"checkpoint_every_epochs", "max_restarts", "silence_seconds"})
