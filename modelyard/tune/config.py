"""How to tune. Optuna is not imported here, so that forms and presets can be checked without it."""

from __future__ import annotations

import math
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from modelyard.artifacts import Frozen

PrunerName = Literal["median", "halving", "none"]
# What decides how much is tried and how, never which trial comes next: a study may be gone on with under other ones.
OPERATIONAL = {"trials", "max_seconds", "concurrency", "then_lifecycle"}


class Dimension(Frozen):
    """The values one key may take: a range, or choices.

    Attributes:
        low, high: both ends belong to the range. Of a key that takes whole numbers only whole ones are tried.
        log: even steps on a logarithmic scale, as learning rates want it.
        step: only ``low + k * step``.
        choices: at least two values of any kind, lists and mappings too.
    """

    low: int | float | None = None
    high: int | float | None = None
    log: bool = False
    step: int | float | None = Field(None, gt=0)
    choices: list[Any] | None = Field(None, min_length=2)

    @model_validator(mode="after")
    def _range_or_choices(self) -> Self:
        if self.choices is not None:
            if self.model_fields_set - {"choices"}:
                raise ValueError("choices stand alone: without low, high, log and step")
            if any(value in self.choices[:place] for place, value in enumerate(self.choices)):
                raise ValueError("two choices are the same")
            return self
        if self.low is None or self.high is None:
            raise ValueError("give low and high, or choices")
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"low {self.low} is not below high {self.high}, or one of them is not finite")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log needs a low above 0, and no step")
        if self.step is not None and self.step > self.high - self.low:
            raise ValueError(f"step {self.step} is wider than the range from {self.low} to {self.high}")
        return self


class TuneConfig(Frozen):
    """Config of a tuning.

    Attributes:
        space: dotted keys of ``train`` and ``preprocess.transform`` -> what to try. The first trial is the preset as it
            is, so the best one is never worse.
        trials: how many, the first one included.
        max_seconds: of all trials together, over all resumes: no trial begins after, and one under way is ended.
        metric: of the validation split; None: ``train.stop.metric``, else the task's headline. Trials keep their best
            weights by it, and train without a target: to the limits of the preset.
        startup: trials that are drawn evenly before the sampler looks at results, and that must be finished before any
            is pruned.
        pruner: ``median`` ends a trial whose best validation so far is worse than the median of the finished trials at
            the same one; ``halving`` lets the best 1/``reduction`` of all that got there pass each of the validations
            ``warmup``, ``warmup`` * ``reduction``, ...; ``none`` ends nobody.
        warmup: validations that each trial has for itself.
        concurrency: trials at the same time, as far as the limit on devices (`modelyard-devices`) lets them.
        seed: of the sampler. Trials one after the other are the same ones for the same seed.
        then_lifecycle: run the lifecycle with the best configuration.
    """

    space: dict[str, Dimension] = Field(default_factory=dict)
    trials: int = Field(20, ge=1, le=1000)
    max_seconds: float | None = Field(None, gt=0)
    metric: str | None = None
    startup: int = Field(5, ge=1, le=1000)
    pruner: PrunerName = "median"
    warmup: int = Field(1, ge=1)
    reduction: int = Field(3, ge=2, le=100)
    concurrency: int = Field(1, ge=1, le=64)
    seed: int = Field(0, ge=0, lt=2**31)
    then_lifecycle: bool = False

    def identity(self) -> dict[str, Any]:
        """The part of the config that a trial depends on."""
        return self.model_dump(mode="json", exclude=OPERATIONAL)
