"""What a candidate is held against."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from modelyard.artifacts import Frozen


class EvaluateConfig(Frozen):
    """Config of the evaluate stage.

    Attributes:
        metric: what the gates look at; more is better.
        floor: what the candidate must reach.
        allowed_drop_against_float: how far it may lie below its own float form.
        allowed_drop_against_champion: how far it may lie below what serves now.
        form: which of the candidate's forms is judged; None: its default one.
        batch_rows: rows per call. Small, as the endpoint sees them: with dynamic int8 the answer to a row depends on
            the rows it is computed with.
        golden_rows: test rows kept, with the candidate's outputs, for the endpoint to prove itself with.
        golden_tolerance: how far any output of a golden row may lie from the kept one on another machine. Outputs
            are raw (logits, for a classifier); a step of int8 moves them by about a hundredth of the largest.
        threads: of the engine.
    """

    metric: Literal["accuracy", "macro_f1"] = "accuracy"
    floor: float = Field(0.9, ge=0, le=1)
    allowed_drop_against_float: float = Field(0.01, ge=0, le=1)
    allowed_drop_against_champion: float = Field(0.01, ge=0, le=1)
    form: str | None = None
    batch_rows: int = Field(32, ge=1)
    golden_rows: int = Field(16, ge=1, le=1024)
    golden_tolerance: float = Field(0.05, gt=0)
    threads: int = Field(1, ge=1, le=1024)
