"""Sample data as a user would have it: handwritten digits in three Parquet files, and texts in a JSON Lines file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from io import BytesIO

import pyarrow as pa
from pyarrow import parquet

NUM_FILES = 3
PASSAGE_CHARACTERS = 2000


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


def topics_jsonl() -> list[tuple[str, bytes]]:
    """Python's own language reference as ``help()`` shows it, half a megabyte of English: rows ``topic``, ``text``.

    A topic is cut at empty lines into texts of some 2,000 characters. Which words these are depends on Python's version.

    Source: https://docs.python.org/3/reference, in the module pydoc_data.topics; PSF licence.
    """
    from pydoc_data.topics import topics

    rows = [{"topic": name, "text": text} for name in sorted(topics) for text in _passages(topics[name])]
    return [("topics.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())]


def _passages(text: str) -> Iterator[str]:
    passage = ""
    for paragraph in text.strip().split("\n\n"):
        passage += paragraph + "\n\n"
        if len(passage) >= PASSAGE_CHARACTERS:
            yield passage.strip()
            passage = ""
    if passage.strip():
        yield passage.strip()


def _bytes(table: pa.Table) -> bytes:
    buffer = BytesIO()
    parquet.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()
