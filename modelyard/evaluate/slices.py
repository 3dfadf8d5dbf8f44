"""For whom is it wrong? The rows of a split, grouped by the values of a column.

A column of few values gives a slice for each; one of many numbers gives quarters, whose bounds are taken from the
split itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
import pandas as pd

from modelyard.errors import ConfigError

MAX_VALUES = 20
QUARTERS = (0.25, 0.5, 0.75)
MISSING = "missing"
SAMPLED_ROWS = 100_000


class Slicer:
    """Names the slice of every row, for one column."""

    def __init__(self, column: str, bounds: np.ndarray | None) -> None:
        self.column = column
        self._bounds = bounds

    @classmethod
    def fit(cls, column: str, frames: Iterable[pd.DataFrame]) -> Slicer:
        """Look at the column's values, at most `SAMPLED_ROWS` of them.

        Raises:
            ConfigError: the data set has no such column, or it has too many values that are no numbers.
        """
        parts, num_rows = [], 0
        for frame in frames:
            if column not in frame.columns:
                known = ", ".join(map(str, frame.columns[:12]))
                raise ConfigError("evaluate.slices", f"the data set has no column {column!r}; it has {known}")
            parts.append(frame[column])
            num_rows += len(frame)
            if num_rows >= SAMPLED_ROWS:
                break
        values = pd.concat(parts).dropna() if parts else pd.Series(dtype=float)
        if values.nunique() <= MAX_VALUES:
            return cls(column, None)
        if not pd.api.types.is_numeric_dtype(values):
            raise ConfigError(
                "evaluate.slices",
                f"column {column!r} has {values.nunique()} values that are no numbers; at most {MAX_VALUES} make slices",
            )
        return cls(column, np.unique(np.quantile(values, QUARTERS)))

    def names(self, frame: pd.DataFrame) -> np.ndarray:
        """The slice of each row: (n,) strings such as ``age <= 30`` or ``city = Bern``."""
        values = frame[self.column]
        if self._bounds is None:
            named = self.column + " = " + values.astype(str)
        else:
            labels = np.array(_labels(self.column, self._bounds), dtype=object)
            named = pd.Series(labels[np.searchsorted(self._bounds, values, side="left")], index=values.index)
        return named.mask(values.isna(), f"{self.column} {MISSING}").to_numpy(dtype=object)


def _labels(column: str, bounds: np.ndarray) -> list[str]:
    first, last = f"{column} <= {bounds[0]:g}", f"{column} > {bounds[-1]:g}"
    between = [f"{low:g} < {column} <= {high:g}" for low, high in itertools.pairwise(bounds)]
    return [first, *between, last]
