"""A fitted transform as plain data, and what it does to rows."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from modelyard.artifacts import Frozen
from modelyard.errors import DataError

if TYPE_CHECKING:
    import pandas as pd  # half a second and 70 MB that a worker of the endpoint does without


class TransformConfig(Frozen):
    """How feature columns are scaled: to mean 0 and deviation 1, to 0..1, or not at all."""

    scaling: Literal["standard", "minmax", "none"] = "standard"


class FeatureScale(Frozen):
    """``(value - offset) / scale`` for one column."""

    name: str
    offset: float
    scale: float = Field(gt=0)


class FittedTransform(Frozen):
    """Scaling of the feature columns, in the order in which the network takes them."""

    features: list[FeatureScale] = Field(min_length=1)

    @property
    def columns(self) -> list[str]:
        return [feature.name for feature in self.features]

    @property
    def width(self) -> int:
        """Number of values per row that the network takes."""
        return len(self.features)

    @cached_property
    def _arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Offsets and scales, each (width,): building them costs more than applying them."""
        return (
            np.array([feature.offset for feature in self.features]),
            np.array([feature.scale for feature in self.features]),
        )

    def apply(self, rows: np.ndarray) -> np.ndarray:
        """Raw values to network input.

        Args:
            rows: (n, width), any real dtype, columns in the order of `columns`.

        Returns:
            (n, width), float32, C-contiguous.

        Raises:
            DataError: another shape.
        """
        if rows.ndim != 2 or rows.shape[1] != self.width:
            raise DataError(f"expected rows of {self.width} values ({self.columns[0]}, ...), got shape {rows.shape}")
        offset, scale = self._arrays
        # In float64 whatever came in, so that float32 and float64 clients get the same answer.
        scaled = (rows.astype(np.float64, copy=False) - offset) / scale
        return np.ascontiguousarray(scaled, dtype=np.float32)

    def apply_frame(self, frame: pd.DataFrame) -> np.ndarray:
        """The same for a frame, whatever its column order and further columns.

        Raises:
            DataError: names the columns that are missing.
        """
        missing = [name for name in self.columns if name not in frame.columns]
        if missing:
            raise DataError(f"columns are missing: {', '.join(missing)}")
        return self.apply(frame[self.columns].to_numpy(dtype=np.float64))
