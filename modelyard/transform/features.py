"""One class for each way a column becomes inputs. A column is first a float64 code (`code`), then inputs (`encode`).

The codes of a row are what Modelyard passes on between its parts: a number is its own code, a category the position
of its value or -1, a date its microseconds since 1970.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
from pydantic import Field

from modelyard.artifacts import Frozen
from modelyard.errors import DataError
from modelyard.transform.config import DatePart

UNKNOWN = -1.0
DAY_SECONDS = 86_400


class FeatureScale(Frozen):
    """A number: ``(value - offset) / scale``; ``fill`` for none, and cut off at ``low`` and ``high`` where given."""

    kind: Literal["number"] = "number"
    name: str
    offset: float
    scale: float = Field(gt=0)
    fill: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def width(self) -> int:
        return 1

    @property
    def is_plain(self) -> bool:
        """Nothing but offset and scale."""
        return self.fill is None and self.low is None and self.high is None

    def code(self, values: Sequence[Any] | np.ndarray) -> np.ndarray:
        try:
            codes = np.asarray(values, dtype=np.float64)
        except (TypeError, ValueError):
            codes = np.array([_number(self.name, value) for value in values], dtype=np.float64)
        missing = np.isnan(codes)
        if missing.any():
            if self.fill is None:
                raise DataError(
                    f"column {self.name!r} has no value in row {int(missing.argmax())}, and none to fill in"
                )
            codes = np.where(missing, self.fill, codes)
        return codes

    def encode(self, codes: np.ndarray) -> np.ndarray:
        if self.fill is not None:
            codes = np.where(np.isnan(codes), self.fill, codes)
        if self.low is not None or self.high is not None:
            codes = np.clip(codes, self.low, self.high)
        return ((codes - self.offset) / self.scale)[:, None]


class Category(Frozen):
    """A text with known values. ``one_hot``: an input for each, all 0 for another; ``ordinal``: 0 for another, 1 for the
    last; ``index``: the row of a table, 0 for another."""

    kind: Literal["one_hot", "ordinal", "index"]
    name: str
    values: list[str] = Field(min_length=1)
    fill: str | None = None

    @property
    def width(self) -> int:
        return len(self.values) if self.kind == "one_hot" else 1

    @property
    def table_rows(self) -> int:
        """Rows of the table that its one input names; 0: its inputs are numbers."""
        return len(self.values) + 1 if self.kind == "index" else 0

    @cached_property
    def _codes(self) -> dict[str, float]:
        codes = {value: float(number) for number, value in enumerate(self.values)}
        return codes | ({"": codes.get(self.fill, UNKNOWN)} if self.fill is not None else {})

    def code(self, values: Sequence[Any] | np.ndarray) -> np.ndarray:
        codes = self._codes
        return np.fromiter((codes.get(plain_text(value), UNKNOWN) for value in values), np.float64, len(values))

    def encode(self, codes: np.ndarray) -> np.ndarray:
        if self.kind == "index":
            return _table_row(codes, len(self.values))
        if self.kind == "ordinal":
            return ((codes + 1) / len(self.values))[:, None]
        return (codes[:, None] == np.arange(len(self.values))).astype(np.float64)


class HashedCategory(Frozen):
    """A text with any number of values: an input for each bucket of its CRC-32 (Weinberger et al., 2009, unsigned); or
    ``as_index``: the row of a table, 0 for none."""

    kind: Literal["hashing"] = "hashing"
    name: str
    buckets: int = Field(ge=2)
    fill: str | None = None
    as_index: bool = False

    @property
    def width(self) -> int:
        return 1 if self.as_index else self.buckets

    @property
    def table_rows(self) -> int:
        """As `Category.table_rows`."""
        return self.buckets + 1 if self.as_index else 0

    def code(self, values: Sequence[Any] | np.ndarray) -> np.ndarray:
        texts = (plain_text(value) or self.fill for value in values)
        buckets = (UNKNOWN if text is None else zlib.crc32(text.encode()) % self.buckets for text in texts)
        return np.fromiter(buckets, np.float64, len(values))

    def encode(self, codes: np.ndarray) -> np.ndarray:
        if self.as_index:
            return _table_row(codes, self.buckets)
        return (codes[:, None] == np.arange(self.buckets)).astype(np.float64)


class DateParts(Frozen):
    """A date: time elapsed between ``low`` and ``high`` (microseconds), and positions in its cycles."""

    kind: Literal["date"] = "date"
    name: str
    parts: list[DatePart] = Field(min_length=1)
    low: float
    high: float
    fill: float | None = None

    @property
    def width(self) -> int:
        return sum(1 if part == "elapsed" else 2 for part in self.parts)

    def code(self, values: Sequence[Any] | np.ndarray) -> np.ndarray:
        try:
            moments = np.asarray(values).astype("datetime64[us]")
        except (TypeError, ValueError) as failure:
            raise DataError(f"column {self.name!r} holds something that is no date: {failure}") from failure
        missing = np.isnat(moments)
        if missing.any() and self.fill is None:
            raise DataError(f"column {self.name!r} has no value in row {int(missing.argmax())}, and none to fill in")
        return np.where(missing, self.fill or 0.0, moments.astype(np.int64).astype(np.float64))

    def encode(self, codes: np.ndarray) -> np.ndarray:
        columns: list[np.ndarray] = []
        for part in self.parts:
            if part == "elapsed":
                columns.append((codes - self.low) / max(self.high - self.low, 1.0))
            else:
                angle = 2 * np.pi * _turn(codes, part)
                columns += [np.sin(angle), np.cos(angle)]
        return np.column_stack(columns)


def _table_row(codes: np.ndarray, count: int) -> np.ndarray:
    """Codes (n,) as rows of a table (n, 1): one above, so that 0 is left for what is unknown."""
    known = (codes >= 0) & (codes < count)
    return np.where(known, np.floor(codes) + 1, 0.0)[:, None]


Feature = FeatureScale | Category | HashedCategory | DateParts


def _turn(codes: np.ndarray, part: DatePart) -> np.ndarray:
    """How far round its cycle each date is, in [0, 1)."""
    moments = codes.astype(np.int64).astype("datetime64[us]")
    seconds = codes / 1e6
    if part == "month":
        return (moments.astype("datetime64[M]").astype(np.int64) % 12) / 12
    if part == "day":
        return (moments.astype("datetime64[D]") - moments.astype("datetime64[M]").astype("datetime64[D]")).astype(
            np.int64
        ) / 31
    if part == "weekday":
        return (np.floor(seconds / DAY_SECONDS) + 3) % 7 / 7  # 1970 began on a Thursday; Monday is 0
    cycle = DAY_SECONDS if part == "hour" else 3600
    return np.mod(seconds, cycle) / cycle


def plain_text(value: Any) -> str:
    """As preprocessing stores it: nothing, NaN and the empty text are one; a whole number is written without a point."""
    if value is None or value != value:  # noqa: PLR0124 (NaN differs from itself)
        return ""
    return value if isinstance(value, str) else str(value)


def _number(name: str, value: Any) -> float:
    try:
        return float("nan") if value is None or value == "" else float(value)
    except (TypeError, ValueError):
        raise DataError(f"column {name!r} holds {value!r}, which is not a number") from None
