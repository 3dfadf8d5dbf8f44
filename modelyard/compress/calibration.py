"""Rows that fix the ranges of int8: enough of them, possible ones, and of the same kind as what comes later."""

from __future__ import annotations

import numpy as np

from modelyard.errors import ConversionFailed

# Fewer rows say little about the range of anything.
MIN_CALIBRATION_ROWS = 16
# Of rows like those that calibrate, about 1 in n reaches beyond n of them at either end (Wilks 1942, Annals of Mathematical
# Statistics 13:400-409). Where half of them do, they are not alike: a range shifted, a unit changed.
MOST_BEYOND_FRACTION = 0.5
STEPS = 255


def calibration_rows(rows: np.ndarray, wanted: int) -> np.ndarray:
    """At most that many of the rows (n, width), spread evenly.

    Raises:
        ConversionFailed: there are too few to tell ranges by, or some are no finite numbers.
    """
    chosen = (
        rows[np.unique(np.linspace(0, len(rows) - 1, min(wanted, len(rows))).astype(np.int64))] if len(rows) else rows
    )
    if len(chosen) < MIN_CALIBRATION_ROWS:
        raise ConversionFailed(f"{len(chosen)} rows to calibrate with are too few, {MIN_CALIBRATION_ROWS} are needed")
    if not np.isfinite(chosen).all():
        raise ConversionFailed("some rows to calibrate with hold no finite numbers")
    return chosen


def require_same_range(chosen: np.ndarray, judged: np.ndarray) -> None:
    """Refuse calibration whose range is not that of the rows (n, width) that a form is judged on: most of what comes would be
    cut off. Tokens have no range.

    Raises:
        ConversionFailed: most of them reach beyond it by more than a step of int8.
    """
    if chosen.dtype.kind == "i":
        return
    low, high = float(chosen.min()), float(chosen.max())
    step = (high - low) / STEPS
    beyond = int(((judged.min(axis=1) < low - step) | (judged.max(axis=1) > high + step)).sum())
    if beyond > MOST_BEYOND_FRACTION * len(judged):
        raise ConversionFailed(
            f"the rows to calibrate with lie between {low:.4g} and {high:.4g}, and {beyond} of {len(judged)} validation rows"
            " reach beyond: they would be cut off. Were both splits drawn from the same data?"
        )
