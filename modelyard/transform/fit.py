"""Statistics that partitions combine exactly, and the scaling that follows from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from modelyard.transform.fitted import FeatureScale, FittedTransform, TransformConfig


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

    @property
    def deviation(self) -> np.ndarray:
        """Population standard deviation."""
        return np.sqrt(self.squared / np.maximum(self.count, 1))


def fit_scaling(columns: Sequence[str], moments: Moments, config: TransformConfig) -> FittedTransform:
    """The transform for these columns. A constant column keeps scale 1: it carries nothing, and must not divide by 0."""
    if config.scaling == "standard":
        offsets, scales = moments.mean, moments.deviation
    elif config.scaling == "minmax":
        offsets, scales = moments.low, moments.high - moments.low
    else:
        offsets, scales = np.zeros(len(columns)), np.ones(len(columns))
    scales = np.where(scales > 0, scales, 1.0)
    return FittedTransform(
        features=[
            FeatureScale(name=name, offset=float(offset), scale=float(scale))
            for name, offset, scale in zip(columns, offsets, scales, strict=True)
        ]
    )
