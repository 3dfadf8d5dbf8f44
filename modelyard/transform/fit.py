"""Statistics that partitions combine exactly, and the scaling that follows from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from modelyard.transform.fitted import FeatureScale, FittedTransform, TransformConfig


@dataclass(frozen=True)
class Moments:
    """Count, mean, sum of squared deviations, minimum and maximum of each column; each array is (width,), float64.

    Partitions merge by the pairwise update of Chan, Golub & LeVeque (1979), so the result does not depend on how
    the rows were cut beyond rounding.
    """

    count: int
    mean: np.ndarray
    squared: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray) -> Moments:
        """Moments of one partition: rows is (n, width) with n > 0."""
        rows = rows.astype(np.float64, copy=False)
        mean = rows.mean(axis=0)
        return cls(len(rows), mean, ((rows - mean) ** 2).sum(axis=0), rows.min(axis=0), rows.max(axis=0))

    def merge(self, other: Moments) -> Moments:
        count = self.count + other.count
        delta = other.mean - self.mean
        return Moments(
            count,
            self.mean + delta * (other.count / count),
            self.squared + other.squared + delta**2 * (self.count * other.count / count),
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
        )

    @property
    def deviation(self) -> np.ndarray:
        """Population standard deviation."""
        return np.sqrt(self.squared / self.count)


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
