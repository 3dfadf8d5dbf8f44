"""A fitted transform as plain data, and what it does to rows."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from modelyard.artifacts import Frozen
from modelyard.errors import DataError
from modelyard.transform.features import Category, Feature, FeatureScale, HashedCategory

if TYPE_CHECKING:
    import pandas as pd  # half a second and 70 MB that a worker of the endpoint does without


class FittedTransform(Frozen):
    """From raw columns to network input: encode each column, keep the selected inputs, project.

    Attributes:
        features: one for each raw column, in the order of `columns`.
        selected: positions of the encoded inputs that stay; None: all.
        projection: ``mean`` (inputs,) and ``components`` (width, inputs) as safetensors in base64; None: none.
    """

    features: list[Feature] = Field(min_length=1)
    selected: list[int] | None = None
    projection: str | None = None

    @property
    def columns(self) -> list[str]:
        """Raw columns, in the order of a row."""
        return [feature.name for feature in self.features]

    @cached_property
    def width(self) -> int:
        """Number of values per row that the network takes."""
        if self.components is not None:
            return len(self.components[1])
        return sum(feature.width for feature in self.features) if self.selected is None else len(self.selected)

    @property
    def tables(self) -> list[int]:
        """For each input the rows of the table that it names a row of; 0: it is a number."""
        rows = [
            rows
            for feature in self.features
            for rows in [feature.table_rows if isinstance(feature, Category | HashedCategory) else 0] * feature.width
        ]
        return rows if self.selected is None else [rows[at] for at in self.selected]

    @property
    def takes_plain_numbers(self) -> bool:
        """Whether a row of raw values is a row of codes already: no texts, no dates, no gaps to fill."""
        return all(isinstance(feature, FeatureScale) and feature.fill is None for feature in self.features)

    @cached_property
    def _scales(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Offsets and scales, each (columns,), where there is nothing else; building them costs more than applying them."""
        scales = [feature for feature in self.features if isinstance(feature, FeatureScale) and feature.is_plain]
        if len(scales) < len(self.features):
            return None
        return np.array([feature.offset for feature in scales]), np.array([feature.scale for feature in scales])

    @cached_property
    def components(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Mean (inputs,) and components (width, inputs) of the projection, where there is one."""
        if self.projection is None:
            return None
        from safetensors.numpy import load

        tensors = load(base64.b64decode(self.projection))
        return tensors["mean"], tensors["components"]

    def apply(self, rows: np.ndarray) -> np.ndarray:
        """Rows of codes (for numbers: of the numbers themselves) to network input.

        Args:
            rows: (n, number of `columns`), any real dtype, as `rows` makes them.

        Returns:
            (n, `width`), float32, C-contiguous.

        Raises:
            DataError: another shape.
        """
        if rows.ndim != 2 or rows.shape[1] != len(self.features):
            raise DataError(
                f"expected rows of {len(self.features)} values ({self.columns[0]}, ...), got shape {rows.shape}"
            )
        encoded = self.encode(rows)
        if self.components is not None:
            mean, components = self.components
            # einsum, not a matrix product: that one adds up in another order when rows come in other numbers.
            encoded = np.einsum("ni,ki->nk", encoded - mean, components)
        return np.ascontiguousarray(encoded, dtype=np.float32)

    def encode(self, rows: np.ndarray) -> np.ndarray:
        """Rows of codes to selected inputs before any projection, (n, inputs) float64.

        In float64 whatever came in, so that float32 and float64 clients get the same answer.
        """
        encoded = self._encode(rows.astype(np.float64, copy=False))
        return encoded if self.selected is None else encoded[:, self.selected]

    @property
    def origins(self) -> np.ndarray:
        """For each input of `encode` the position of the raw column that it comes from, (inputs,)."""
        origins = np.repeat(np.arange(len(self.features)), [feature.width for feature in self.features])
        return origins if self.selected is None else origins[self.selected]

    def _encode(self, rows: np.ndarray) -> np.ndarray:
        if self._scales is not None:
            offset, scale = self._scales
            return (rows - offset) / scale
        return np.concatenate([feature.encode(rows[:, at]) for at, feature in enumerate(self.features)], axis=1)

    def rows(self, columns: Mapping[str, Sequence[Any] | np.ndarray] | pd.DataFrame) -> np.ndarray:
        """Raw columns by name to rows of codes (n, number of `columns`), float64; further columns do not matter.

        Texts stand for categories, ISO 8601 texts or datetimes for dates; None or NaN is filled in where it was in
        training. A category that training did not know is no error.

        Raises:
            DataError: a column is missing, of another length, or holds what cannot be read.
        """
        missing = [name for name in self.columns if name not in columns]
        if missing:
            raise DataError(f"columns are missing: {', '.join(missing)}")
        codes = [feature.code(_plain(columns[feature.name])) for feature in self.features]
        if len({len(column) for column in codes}) > 1:
            raise DataError(f"columns are of different lengths: {', '.join(str(len(column)) for column in codes)}")
        return np.column_stack(codes)

    def apply_columns(self, columns: Mapping[str, Sequence[Any] | np.ndarray]) -> np.ndarray:
        """Raw columns by name to network input: `rows`, then `apply`."""
        return self.apply(self.rows(columns))

    def apply_frame(self, frame: pd.DataFrame) -> np.ndarray:
        """The same for a frame.

        Raises:
            DataError: names the columns that are missing.
        """
        return self.apply(self.rows(frame))


def _plain(values: Any) -> Any:
    """A frame's column as an array; lists stay what they are (numpy would make the text "nan" of a NaN among texts)."""
    return values.to_numpy() if hasattr(values, "to_numpy") else values
