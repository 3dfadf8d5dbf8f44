"""What a candidate is held against."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from modelyard.artifacts import Frozen


class EvaluateConfig(Frozen):
    """Config of the evaluate stage.

    Attributes:
        metric: what the gates look at; more is better. A regression has ``r2``.
        floor: what the candidate must reach.
        allowed_drop_against_float: how far it may lie below its own float form.
        allowed_drop_against_champion: how far it may lie below what serves now.
        form: which of the candidate's forms is judged; None: its default one.
        golden_rows: test rows kept, with the candidate's outputs, for the endpoint to prove itself with.
        golden_tolerance: how far any output of a golden row may lie from the kept one on another machine, as a
            fraction of the largest kept one. Integer sums are exact everywhere, but a processor that fuses multiply
            and add may round an activation to the next int8 step: 1/255 = 0.4 % where a single activation decides
            (0.07 % on the digits), so 0.5 % admits that. Float forms differ by 1e-6, saturating sums by 12 %.
        threads: of the engine.
    """

    metric: Literal["accuracy", "macro_f1", "r2"] = "accuracy"
    floor: float = Field(0.9, ge=0, le=1)
    allowed_drop_against_float: float = Field(0.01, ge=0, le=1)
    allowed_drop_against_champion: float = Field(0.01, ge=0, le=1)
    form: str | None = None
    golden_rows: int = Field(16, ge=1, le=1024)
    golden_tolerance: float = Field(0.005, gt=0, lt=1)
    threads: int = Field(1, ge=1, le=1024)
