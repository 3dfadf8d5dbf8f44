"""What a column holds, in a few numbers: counted exactly, its distribution from an even sample in order of arrival."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import polars as pl

from modelyard.preprocess.schema import Column

SAMPLE_VALUES = 8192
BINS = 20
TOP_VALUES = 10


class TableProfile:
    """Profiles of some columns over any number of rows."""

    def __init__(self, columns: list[Column]) -> None:
        self._columns = [ColumnProfile(column) for column in columns]

    def add(self, rows: pl.DataFrame) -> None:
        for profile in self._columns:
            profile.add(rows[profile.name])

    def as_json(self) -> dict[str, Any]:
        return {profile.name: profile.as_json() for profile in self._columns}


class ColumnProfile:
    """One column: rows, nulls, range, and a histogram or the most frequent values.

    Values of a sensitive column are not shown, though they are masked or hashed by now.
    """

    def __init__(self, column: Column) -> None:
        self.name = column.name
        self._kind, self._is_shown = column.kind, column.rule.sensitive is None
        self._num_rows = self._num_nulls = self._num_seen = 0
        self._low, self._high = np.inf, -np.inf
        self._stride = 1
        self._sample: list[Any] = []

    def add(self, values: pl.Series) -> None:
        self._num_rows += len(values)
        present = values.drop_nulls()
        self._num_nulls += len(values) - len(present)
        if len(present) and values.dtype != pl.String:
            present = present.to_physical().cast(pl.Float64)
            finite = present.filter(present.is_finite())
            if len(finite):
                self._low = min(self._low, float(finite.min()))  # ty: ignore[invalid-argument-type]  (not empty)
                self._high = max(self._high, float(finite.max()))  # ty: ignore[invalid-argument-type]
            present = finite
        if self._is_shown:
            self._take_sample(present)

    def _take_sample(self, values: pl.Series) -> None:
        first = -self._num_seen % self._stride
        self._num_seen += len(values)
        self._sample += values.gather_every(self._stride, first).to_list() if first < len(values) else []
        while len(self._sample) > SAMPLE_VALUES:
            self._sample, self._stride = self._sample[::2], self._stride * 2

    def as_json(self) -> dict[str, Any]:
        told: dict[str, Any] = {"kind": self._kind, "rows": self._num_rows, "nulls": self._num_nulls}
        if np.isfinite(self._low):
            told |= {"low": self._low, "high": self._high}
        if self._sample and isinstance(self._sample[0], float):
            told["histogram"] = _histogram(np.array(self._sample))
        elif self._sample:
            counts = sorted(Counter(map(str, self._sample)).items(), key=lambda item: (-item[1], item[0]))
            told["frequent"] = [[value[:60], count / len(self._sample)] for value, count in counts[:TOP_VALUES]]
        return told


def _histogram(sample: np.ndarray) -> dict[str, Any]:
    """Shares of the sample in bins of equal width between its extremes."""
    low, high = float(sample.min()), float(sample.max())
    if not np.isfinite(high - low) or high <= low:
        return {"low": low, "high": high, "shares": [1.0]}
    counts, _ = np.histogram(sample, bins=BINS, range=(low, high))
    return {"low": low, "high": high, "shares": [round(float(count) / len(sample), 6) for count in counts]}
