"""The sample data set, as a user would have it: scikit-learn's handwritten digits in three Parquet files."""

from __future__ import annotations

from io import BytesIO

import pyarrow as pa
from pyarrow import parquet

NUM_FILES = 3


def digits_parquet() -> list[tuple[str, bytes]]:
    """1,797 images of 8 x 8 pixels: columns ``pixel_0_0`` to ``pixel_7_7`` (float64, 0 to 16) and ``label`` (int64).

    Returns:
        Name and content of each file; the same bytes on every machine with the same pyarrow.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI (1998); shipped by scikit-learn.
    """
    from sklearn.datasets import load_digits  # half a second, and only here

    digits = load_digits()
    columns = {name: digits.data[:, number] for number, name in enumerate(digits.feature_names)}
    table = pa.table({**columns, "label": digits.target.astype("int64")})
    share = -(-len(table) // NUM_FILES)
    parts = [table.slice(start, share) for start in range(0, len(table), share)]
    return [(f"digits-{number}.parquet", _bytes(part)) for number, part in enumerate(parts)]


def _bytes(table: pa.Table) -> bytes:
    buffer = BytesIO()
    parquet.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()
