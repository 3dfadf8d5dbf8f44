"""For whom is it wrong? The rows of a split, grouped by the values of a column.

A column of few values gives a slice for each; one of many numbers or dates gives quarters; of many other values the most
frequent have a slice each, and the rest one together. Which they are is taken from rows all over the split.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable, Iterator, Sequence

import numpy as np
import pandas as pd

from modelyard.errors import ConfigError
from modelyard.evaluate.sample import gathered

MAX_VALUES = 20
QUARTERS = (0.25, 0.5, 0.75)
MISSING = "missing"
OTHERS = "any other"
SAMPLED_ROWS = 100_000


class Slicer:
    """Names the slice of every row, for one column: by bounds of numbers, or by known values."""

    def __init__(self, column: str, *, bounds: pd.Series | None = None, values: Sequence[object] = ()) -> None:
        self.column = column
        self._bounds = bounds
        self._names = {value: f"{column} = {_text(value)}" for value in values}

    @classmethod
    def fit(cls, column: str, sample: pd.Series) -> Slicer:
        """Look at some of the column's values.

        Raises:
            ConfigError: they are lists or the like, which nothing equals.
        """
        known = sample.dropna()
        strange = next((value for value in known if not isinstance(value, Hashable)), None)
        if strange is not None:
            raise ConfigError("evaluate.slices", f"column {column!r} holds {type(strange).__name__}s: no slices")
        counts = known.value_counts()
        if len(counts) > MAX_VALUES and _is_ordered(known):
            return cls(column, bounds=known.quantile(list(QUARTERS)).drop_duplicates())
        kept = counts.index[: MAX_VALUES - 1] if len(counts) > MAX_VALUES else counts.index
        return cls(column, values=list(kept))

    def names(self, frame: pd.DataFrame) -> np.ndarray:
        """The slice of each row: (n,) strings such as ``age <= 30``, ``city = Bern`` or ``city = any other``."""
        values = frame[self.column]
        if self._bounds is None:
            named = values.astype(object).map(self._names).fillna(f"{self.column} = {OTHERS}")
        else:
            labels = np.array(_labels(self.column, self._bounds), dtype=object)
            places = np.searchsorted(_numbers(self._bounds), _numbers(values), side="left")
            named = pd.Series(labels[places], index=values.index)
        return named.mask(values.isna(), f"{self.column} {MISSING}").to_numpy(dtype=object)


def fit_slicers(columns: Sequence[str], frames: Iterable[pd.DataFrame], num_rows: int) -> list[Slicer]:
    """One for each column, from `SAMPLED_ROWS` of the split's rows, spread evenly; frames are read once.

    Raises:
        ConfigError: the data set has no such column, or nothing can be grouped by it.
    """
    if not columns:
        return []
    sample = gathered(_only(columns, frames), num_rows, SAMPLED_ROWS)
    return [Slicer.fit(column, sample[column]) for column in columns]


def _only(columns: Sequence[str], frames: Iterable[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    for frame in frames:
        for column in columns:
            if column not in frame.columns:
                known = ", ".join(map(str, frame.columns[:12]))
                raise ConfigError("evaluate.slices", f"the data set has no column {column!r}; it has {known}")
        yield frame[list(columns)]


def _is_ordered(values: pd.Series) -> bool:
    is_number = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    return is_number or pd.api.types.is_datetime64_any_dtype(values)


def _numbers(values: pd.Series) -> np.ndarray:
    """What is compared: dates as nanoseconds. What is missing is named before anybody looks at it."""
    if pd.api.types.is_datetime64_any_dtype(values):
        return values.to_numpy(dtype="datetime64[ns]").astype(np.int64)
    return values.to_numpy(dtype=np.float64, na_value=np.nan)


def _labels(column: str, bounds: pd.Series) -> list[str]:
    said = [_text(bound) for bound in bounds]
    between = [f"{low} < {column} <= {high}" for low, high in itertools.pairwise(said)]
    return [f"{column} <= {said[0]}", *between, f"{column} > {said[-1]}"]


def _text(value: object) -> str:
    """A value for people: whole numbers without a point, dates to the minute."""
    if isinstance(value, pd.Timestamp):
        return f"{value:%Y-%m-%d %H:%M}"
    return f"{value:g}" if isinstance(value, float | np.floating) else str(value)
