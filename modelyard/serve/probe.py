"""Golden rows: what a version must answer, to a tolerance, before it answers anybody.

Evaluation writes them into the verdict (`golden.json`) with the outputs it judged. An endpoint that computes
something else runs another model, another engine or a damaged file, and must not serve it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from modelyard.errors import DataError, Refused

GOLDEN_FILE = "golden.json"


class GoldenRows(BaseModel):
    """Raw feature rows, the raw outputs that ``form`` gave for them (a row's, or each token's), and the largest allowed
    difference."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    rows: list[list[float]] = Field(min_length=1)
    outputs: list[list[float]] | list[list[list[float]]] = Field(min_length=1)
    tolerance: float = Field(ge=0, allow_inf_nan=False)
    form: str


def read_golden(folder: Path) -> GoldenRows:
    """The golden rows of a verdict's folder.

    Raises:
        DataError: the file does not say what it must.
    """
    try:
        return GoldenRows.model_validate_json((folder / GOLDEN_FILE).read_bytes())
    except ValidationError as invalid:
        first = invalid.errors()[0]
        raise DataError(f"{GOLDEN_FILE}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def refuse_unless_golden(subject: str, golden: GoldenRows, form: str, answered: np.ndarray) -> None:
    """Compare the outputs (n, k) or (n, t, k) of the version with the golden ones.

    Raises:
        Refused: they differ by more than the tolerance, or are not finite.
    """
    expected = np.array(golden.outputs, dtype=np.float64)
    if golden.form != form:
        raise Refused(subject, [f"its golden rows are of the form {golden.form!r}, it is to serve {form!r}"])
    if expected.shape != answered.shape:
        raise Refused(subject, [f"golden outputs have the shape {expected.shape}, it answers {answered.shape}"])
    difference = np.abs(expected - answered.astype(np.float64))
    wrong = ~(difference <= golden.tolerance)  # NaN is wrong too
    if wrong.any():
        first = tuple(np.argwhere(wrong)[0])
        row, place = first[0], ", ".join(map(str, first[1:]))
        raise Refused(
            subject,
            [
                (
                    f"{int(wrong.reshape(len(wrong), -1).any(axis=1).sum())} of {len(expected)} golden rows differ: row {row},"
                    f" output {place} is {answered[first]:.6g}, evaluated was {expected[first]:.6g}, tolerance"
                    f" {golden.tolerance:g}"
                )
            ],
        )
