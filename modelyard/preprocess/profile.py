"""What a column holds, in a few numbers: counted exactly, its distribution from an even sample in order of arrival.

Partitions keep their profile, and a data set's is put together from them: `state` is what is kept.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import polars as pl

from modelyard.preprocess.schema import Column

SAMPLE_VALUES = 8192
PARTITION_VALUES, LEAST_VALUES = 1024, 32  # of a column, fewer where there are many columns
PARTITION_BUDGET = 65_536
BINS = 20
TOP_VALUES = 10
FEWEST_TEXTS = 20  # of which it is told how long they are, instead of what they say


class TableProfile:
    """Profiles of some columns over any number of rows: of a partition, or of the whole data set."""

    def __init__(self, columns: list[Column], limit: int = SAMPLE_VALUES) -> None:
        self._columns = [ColumnProfile(column, limit) for column in columns]

    @classmethod
    def of_partition(cls, columns: list[Column]) -> TableProfile:
        return cls(columns, max(LEAST_VALUES, min(PARTITION_VALUES, PARTITION_BUDGET // len(columns))))

    def add(self, rows: pl.DataFrame) -> None:
        for profile in self._columns:
            profile.add(rows[profile.name])

    def merge(self, state: dict[str, Any]) -> None:
        """Take in what stands behind the rows seen so far."""
        for profile in self._columns:
            profile.merge(state[profile.name])

    def state(self) -> dict[str, Any]:
        return {profile.name: profile.state() for profile in self._columns}

    def as_json(self) -> dict[str, Any]:
        return {profile.name: profile.as_json() for profile in self._columns}


class ColumnProfile:
    """One column: rows, nulls, range, and a histogram, the most frequent values, or how long texts are.

    Values of a sensitive column are not shown, though they are masked or hashed by now.
    """

    def __init__(self, column: Column, limit: int) -> None:
        self.name = column.name
        self._limit = limit
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
        # As sparse as the sample has to be afterwards, so that no more is taken than stays.
        while -(-(self._num_seen + len(values)) // self._stride) > self._limit:
            self._thin()
        first = -self._num_seen % self._stride
        self._num_seen += len(values)
        self._sample += values.gather_every(self._stride, first).to_list() if first < len(values) else []

    def _thin(self) -> None:
        self._sample, self._stride = self._sample[::2], self._stride * 2

    def state(self) -> dict[str, Any]:
        return {
            "rows": self._num_rows,
            "nulls": self._num_nulls,
            "low": self._low,
            "high": self._high,
            "stride": self._stride,
            "sample": self._sample,
        }

    def merge(self, state: dict[str, Any]) -> None:
        """Both samples become as sparse as the sparser one: strides are powers of two."""
        self._num_rows += state["rows"]
        self._num_nulls += state["nulls"]
        self._low, self._high = min(self._low, state["low"]), max(self._high, state["high"])
        stride = max(self._stride, state["stride"])
        self._sample = self._sample[:: stride // self._stride] + state["sample"][:: stride // state["stride"]]
        self._stride = stride
        while len(self._sample) > self._limit:
            self._thin()

    def as_json(self) -> dict[str, Any]:
        told: dict[str, Any] = {"kind": self._kind, "rows": self._num_rows, "nulls": self._num_nulls}
        if np.isfinite(self._low):
            told |= {"low": self._low, "high": self._high}
        if self._sample and isinstance(self._sample[0], float):
            told["histogram"] = _histogram(np.array(self._sample))
        elif self._sample:
            told |= _of_texts([str(value) for value in self._sample])
        return told


def _of_texts(sample: list[str]) -> dict[str, Any]:
    """The most frequent values; of texts that hardly ever repeat, which say nothing one by one, how long they are."""
    found = Counter(sample)
    if len(sample) >= FEWEST_TEXTS and len(found) > len(sample) / 2:
        return {"characters": _histogram(np.array([len(text) for text in sample], np.float64))}
    counts = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    return {"frequent": [[value[:60], count / len(sample)] for value, count in counts[:TOP_VALUES]]}


def _histogram(sample: np.ndarray) -> dict[str, Any]:
    """Shares of the sample in bins of equal width between its extremes."""
    low, high = float(sample.min()), float(sample.max())
    if not np.isfinite(high - low) or high <= low:
        return {"low": low, "high": high, "shares": [1.0]}
    counts, _ = np.histogram(sample, bins=BINS, range=(low, high))
    return {"low": low, "high": high, "shares": [round(float(count) / len(sample), 6) for count in counts]}
