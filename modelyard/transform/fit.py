"""Statistics that partitions combine, and the features that follow from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from modelyard.errors import DataError
from modelyard.transform.config import TransformConfig
from modelyard.transform.features import Category, FeatureScale
from modelyard.transform.fitted import FittedTransform

SAMPLE_VALUES: int = 200_000
MAX_DISTINCT = 1_000_000


@dataclass(frozen=True)
class Moments:
    """Count, mean, sum of squared deviations, minimum and maximum of each column's values; NaN is no value.

    Each array is (width,), float64. Partitions merge by the pairwise update of Chan, Golub & LeVeque (1979), so the
    result does not depend on how the rows were cut beyond rounding. A column without values has count 0, mean 0.
    """

    count: np.ndarray
    mean: np.ndarray
    squared: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray) -> Moments:
        """Moments of one partition: rows is (n, width)."""
        rows = rows.astype(np.float64, copy=False)
        here = ~np.isnan(rows)
        count = here.sum(axis=0).astype(np.float64)
        mean = np.where(here, rows, 0.0).sum(axis=0) / np.maximum(count, 1)
        deviations = np.where(here, rows - mean, 0.0)
        low = np.where(here, rows, np.inf).min(axis=0, initial=np.inf)
        high = np.where(here, rows, -np.inf).max(axis=0, initial=-np.inf)
        return cls(count, mean, (deviations**2).sum(axis=0), low, high)

    def merge(self, other: Moments) -> Moments:
        count = self.count + other.count
        delta = other.mean - self.mean
        share = other.count / np.maximum(count, 1)
        return Moments(
            count,
            self.mean + delta * share,
            self.squared + other.squared + delta**2 * self.count * share,
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
        )

    def state(self) -> list[list[float]]:
        """As plain lists, to the last bit; `of_state` reads them."""
        return [array.tolist() for array in (self.count, self.mean, self.squared, self.low, self.high)]

    @classmethod
    def of_state(cls, state: Sequence[Sequence[float]]) -> Moments:
        return cls(*(np.asarray(values, dtype=np.float64) for values in state))

    @property
    def deviation(self) -> np.ndarray:
        """Population standard deviation."""
        return np.sqrt(self.squared / np.maximum(self.count, 1))


class Sample:
    """Every k-th of any number of values, at most `SAMPLE_VALUES`; which ones follows from their order alone.

    Up to that number quantiles are exact. Beyond it, k doubles whenever the sample is full.

    Args:
        limit: the sample is full when it has more values.
    """

    def __init__(self, limit: int = SAMPLE_VALUES) -> None:
        self._limit = limit
        self._values = np.empty(0)
        self._stride = 1
        self._num_seen = 0

    def add(self, values: np.ndarray) -> None:
        """Take in values (n,); NaN is none."""
        values = values[~np.isnan(values)]
        first = -self._num_seen % self._stride
        self._num_seen += len(values)
        self._values = np.concatenate([self._values, values[first :: self._stride]])
        self._thin()

    def merge(self, stride: int, values: Sequence[float]) -> None:
        """Take in the sample of what stands behind, every ``stride``-th; `add` cannot follow."""
        common = max(self._stride, stride)
        own, other = self._values[:: common // self._stride], np.asarray(values, dtype=np.float64)[:: common // stride]
        self._values, self._stride = np.concatenate([own, other]), common
        self._thin()

    def state(self) -> tuple[int, list[float]]:
        """What `merge` takes."""
        return self._stride, self._values.tolist()

    def _thin(self) -> None:
        while len(self._values) > self._limit:
            self._values = self._values[::2]
            self._stride *= 2

    def quantile(self, share: float) -> float:
        return float(np.quantile(self._values, share))

    def __len__(self) -> int:
        return len(self._values)


class Counts:
    """How often each value of a column occurs."""

    def __init__(self, column: str) -> None:
        self._column = column
        self._counts: Counter[str] = Counter()

    def add(self, values: Sequence[str], counts: Sequence[int]) -> None:
        for value, count in zip(values, counts, strict=True):
            self._counts[value] += count
        if len(self._counts) > MAX_DISTINCT:
            raise DataError(
                f"column {self._column!r} has more than {MAX_DISTINCT:,} distinct values; set transform.categories to"
                " hashing, or leave it out"
            )

    def state(self) -> tuple[list[str], list[int]]:
        """What `add` takes."""
        values = sorted(self._counts)
        return values, [self._counts[value] for value in values]

    def most_common(self, count: int) -> list[str]:
        """By frequency, then by value."""
        return [value for value, _ in sorted(self._counts.items(), key=lambda item: (-item[1], item[0]))[:count]]


def fit_scaling(columns: Sequence[str], moments: Moments, config: TransformConfig) -> FittedTransform:
    """The transform for columns of numbers. A constant column keeps scale 1: it carries nothing, and must not divide by 0."""
    return FittedTransform(features=list(fit_scales(columns, moments, config)))


def fit_scales(columns: Sequence[str], moments: Moments, config: TransformConfig) -> list[FeatureScale]:
    """Offset and scale of each column."""
    offsets, scales = np.zeros(len(columns)), np.ones(len(columns))
    if config.scaling == "standard":
        offsets, scales = moments.mean, moments.deviation
    elif config.scaling == "minmax":
        seen = moments.count > 0
        offsets = np.where(seen, moments.low, 0.0)
        scales = np.where(seen, moments.high - moments.low, 1.0)
    elif config.scaling == "image":
        scales = np.full(len(columns), 255.0)
    scales = np.where(scales > 0, scales, 1.0)
    return [
        FeatureScale(name=name, offset=float(offset), scale=float(scale))
        for name, offset, scale in zip(columns, offsets, scales, strict=True)
    ]


def fit_category(
    column: str, counts: Counts, config: TransformConfig, fill: str | None, *, as_index: bool = False
) -> Category:
    """The known values of a column: the most frequent ones.

    Args:
        as_index: for a network with a table of vectors; else as the config says.

    Raises:
        DataError: the training split has none.
    """
    values = counts.most_common(config.table_rows if as_index else config.max_categories)
    if not values:
        raise DataError(f"column {column!r} has no value in the training split; leave it out")
    if as_index:
        return Category(kind="index", name=column, values=values, fill=fill)
    kind = "ordinal" if config.categories == "ordinal" else "one_hot"
    return Category(kind=kind, name=column, values=values, fill=fill)
