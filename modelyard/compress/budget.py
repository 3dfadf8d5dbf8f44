"""What a user allows a smaller model to cost. No torch here: presets are checked without it."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from modelyard.artifacts import Frozen


class DropLimit(Frozen):
    """How far a metric may get worse than the float model's, on the validation split.

    Attributes:
        absolute: in the metric's own units.
        relative: as a fraction of the float model's value.
    """

    absolute: float | None = Field(None, ge=0)
    relative: float | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _limits_something(self) -> Self:
        if self.absolute is None and self.relative is None:
            raise ValueError("say absolute or relative, or both")
        return self


class LatencyLimit(Frozen):
    """Largest latency in ms of one call at a batch size, with the threads of `MeasureConfig`."""

    batch: int = Field(1, ge=1)
    p50_ms: float | None = Field(None, gt=0)
    p99_ms: float | None = Field(None, gt=0)


class Budget(Frozen):
    """The bounds that a candidate has to keep.

    Attributes:
        max_drop: metric -> limit; empty: the task's headline metric may drop by 0.01.
        confidence: of the one-sided bound on a drop: not the drop that was seen is held against the limit, but the
            largest that these validation rows do not rule out.
        max_size_bytes: of the files of the form.
        max_size_fraction: the same, as a fraction of the float form's.
        latency: p50 and p99 at batch sizes.
    """

    max_drop: dict[str, DropLimit] = Field(default_factory=dict)
    confidence: float = Field(0.95, gt=0.5, lt=1)
    max_size_bytes: int | None = Field(None, ge=1)
    max_size_fraction: float | None = Field(None, gt=0)
    latency: list[LatencyLimit] = Field(default_factory=list)

    def limits(self, headline: str) -> dict[str, DropLimit]:
        """The limits on drops, with the default where none was said."""
        return self.max_drop or {headline: DropLimit(absolute=0.01)}
