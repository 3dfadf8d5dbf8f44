"""What crosses from a task to its flow and from a flow to its caller: small, frozen, JSON."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from modelyard.artifacts import ArtifactRef, Frozen
from modelyard.errors import Refused
from modelyard.predict import Predictions
from modelyard.rollout import Release


class Usage(Frozen):
    """What a stage cost.

    Attributes:
        seconds: wall time.
        device_seconds: wall time times the devices (or CPU processes) that worked.
        bytes_in: read from the object store.
        bytes_out: written to the object store.
        bytes_stored: size of the artifact's files.
    """

    seconds: float = 0.0
    device_seconds: float = 0.0
    bytes_in: int = 0
    bytes_out: int = 0
    bytes_stored: int = 0


class StageResult(Frozen):
    """What one stage did: its artifact, the number that matters, and what it cost.

    Attributes:
        headline: one short phrase for a person: ``accuracy 0.969 after 12 epochs``.
        reused: the artifact was found, nothing was computed.
    """

    stage: str
    ref: ArtifactRef
    reused: bool
    headline: str
    numbers: dict[str, float] = Field(default_factory=dict)
    mlflow_run_id: str | None = None
    usage: Usage = Usage()


class StageRefused(Refused):
    """A stage's gate said no; `result` is what the stage found all the same, for the report."""

    def __init__(self, refusal: Refused, result: StageResult) -> None:
        super().__init__(refusal.subject, refusal.reasons, refusal.table)
        self.result = result


class RolloutResult(Frozen):
    """What the rollout stage did."""

    stage: str = "rollout"
    release: Release
    headline: str
    mlflow_run_id: str | None = None
    usage: Usage = Usage()


class PredictResult(Frozen):
    """What a batch prediction did."""

    stage: str = "predict"
    predictions: Predictions
    headline: str
    mlflow_run_id: str | None = None
    usage: Usage = Usage()


class LifecycleResult(Frozen):
    """A whole lifecycle run, as `.modelyard/last-run.json` has it."""

    flow_run_id: str
    mlflow_run_id: str
    model_name: str
    model_version: str
    endpoint_url: str
    dataset_uri: str
    artifacts: dict[str, ArtifactRef]
    metrics: dict[str, dict[str, float]] = Field(description="float and compressed model on the test split")
    stages: list[StageResult | RolloutResult]


class TuneResult(Frozen):
    """What a tuning found.

    Attributes:
        ref: the model of the best trial.
        parameters: what was tuned, as the best trial has it.
        preset_uri: the best configuration as a preset of its own.
        lifecycle: of that preset, where it was asked for.
    """

    stage: str = "tune"
    ref: ArtifactRef
    headline: str
    trial: int
    num_trials: int
    metric: str
    value: float
    parameters: dict[str, Any]
    preset_uri: str
    lifecycle: LifecycleResult | None = None
    mlflow_run_id: str | None = None
    usage: Usage = Usage()
