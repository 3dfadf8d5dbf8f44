"""Raw rows on their way in: what every reader of a format gives, and how much it may hold at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

BATCH_BYTES = 8 * 2**20
# A longer row is refused: a quote that is never closed would otherwise be read as one field, up to the file's end.
ROW_BYTES = BATCH_BYTES
BATCH_ROWS = 65_536
# What a text field may say instead of a value. Not "NA": it is also a country, and in a number column it is refused.
NULLS = ["", "NaN", "nan", "NULL", "null"]


@dataclass(frozen=True)
class RawBatch:
    """Some rows of a file.

    Attributes:
        rows: the wanted columns; all text where the format has no types.
        numbers: (n,) number of each row, counted from 1 without a header.
        torn: lines of the quarantine for what is no row at all.
        files: (n,) which of the partition's files each row is from, where a batch has rows of several.
    """

    rows: pl.DataFrame
    numbers: np.ndarray
    torn: pl.DataFrame | None = None
    files: np.ndarray | None = None

    @property
    def num_read(self) -> int:
        return self.rows.height + (0 if self.torn is None else self.torn.height)


def decoded(value: bytes) -> str | None:
    """The text, or None where it is no UTF-8."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return None
