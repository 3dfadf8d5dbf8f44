"""Which split a row belongs to: by hash, by class, or by time. A row that was there stays where it is as data is added."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import polars as pl

from modelyard.preprocess.rows import row_hashes, split_at
from modelyard.preprocess.schema import Plan
from modelyard.preprocess.sections import SplitConfig

# Multiples of the golden ratio spread evenly over [0, 1) at every length (Kronecker; Knuth, vol. 3, 6.4).
GOLDEN = (5**0.5 - 1) / 2


class Assigner(Protocol):
    """Gives a row its split by itself, whatever stands before it."""

    def assign(self, rows: pl.DataFrame, shares: np.ndarray) -> np.ndarray:
        """Number of each row's split in `SPLITS`, (n,); ``shares`` (n,) are the rows' own numbers in [0, 1)."""
        ...


def assigner(config: SplitConfig) -> Assigner:
    """For the methods hash and time."""
    return _ByTime(config) if config.method == "time" else _ByHash(config)


class _ByHash:
    def __init__(self, config: SplitConfig) -> None:
        self._config = config

    def assign(self, rows: pl.DataFrame, shares: np.ndarray) -> np.ndarray:
        del rows
        return split_at(shares, self._config)


class Stratified:
    """The k-th row of a class gets the k-th number of a sequence that fills [0, 1) evenly at every length.

    Args:
        starts: label -> rows of it that arrived before.
    """

    def __init__(self, config: SplitConfig, plan: Plan, starts: Mapping[Any, int]) -> None:
        self._config, self._target = config, plan.target.name
        self._counts = dict(starts)

    def assign(self, rows: pl.DataFrame) -> np.ndarray:
        """Number of each row's split in `SPLITS`, (n,), for the rows that arrive next."""
        labels = rows[self._target]
        starts = row_hashes(rows, [self._target])[:, 0] / 2.0**64  # so that classes do not begin in one split
        nth = pl.DataFrame({"label": labels}).select(pl.int_range(pl.len()).over("label")).to_series()
        counts = labels.value_counts(name="rows")
        before = labels.replace_strict(
            counts[self._target], [self._counts.get(label, 0) for label in counts[self._target]], return_dtype=pl.Int64
        )
        for label, count in counts.iter_rows():
            self._counts[label] = self._counts.get(label, 0) + count
        return split_at((starts + (nth + before).to_numpy() * GOLDEN) % 1.0, self._config)


class _ByTime:
    def __init__(self, config: SplitConfig) -> None:
        self._config = config

    def assign(self, rows: pl.DataFrame, shares: np.ndarray) -> np.ndarray:
        del shares
        assert self._config.time_column is not None
        moments = rows[self._config.time_column]
        edges = [self._config.validation_from, self._config.test_from]
        codes = sum((moments >= edge.replace(tzinfo=None)).cast(pl.Int8) for edge in edges if edge is not None)
        assert isinstance(codes, pl.Series)
        return codes.to_numpy()
