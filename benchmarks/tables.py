"""Tables to preprocess: mixed columns, drawn from a seed, with faults and duplicates in known shares."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import csv, parquet

CHUNK_ROWS = 200_000
CSV_BYTES_PER_ROW = 92
FAULTY_FRACTION = 0.01
DUPLICATE_FRACTION = 0.02
LOW, HIGH = -1000.0, 1000.0
NUMBERS = ("n0", "n1", "n2", "n3", "n4", "n5")
CITIES = np.array(["Lima", "Oslo", "Kyoto", "Accra", "Quito", "Perth", "Turin", "Hanoi"])


def rows_for(num_bytes: int) -> int:
    """Rows of a CSV file of about that size."""
    return num_bytes // CSV_BYTES_PER_ROW


def write(folder: Path, form: str, num_rows: int, num_files: int = 4) -> list[Path]:
    """The table as ``num_files`` files, ``form`` being csv or parquet; the same rows in both."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, seed in enumerate(np.random.SeedSequence(7).spawn(num_files)):
        path = folder / f"part-{number:03d}.{form}"
        chunks = _chunks(np.random.default_rng(seed), num_rows // num_files, number)
        if form == "csv":
            with csv.CSVWriter(path, _schema(), write_options=csv.WriteOptions(quoting_style="needed")) as writer:
                for chunk in chunks:
                    writer.write_table(chunk)
        else:
            with parquet.ParquetWriter(path, _schema(), compression="zstd") as writer:
                for chunk in chunks:
                    writer.write_table(chunk)
        paths.append(path)
    return paths


def _schema() -> pa.Schema:
    numbers = [(name, pa.string()) for name in NUMBERS]
    return pa.schema([("id", pa.int64()), *numbers, ("city", pa.string()), ("code", pa.string()), ("y", pa.int64())])


def _chunks(rng: np.random.Generator, num_rows: int, file: int) -> Iterator[pa.Table]:
    for start in range(0, num_rows, CHUNK_ROWS):
        yield _chunk(rng, min(CHUNK_ROWS, num_rows - start), file * 10**9 + start)


def _chunk(rng: np.random.Generator, count: int, first_id: int) -> pa.Table:
    values = rng.normal(0, 100, (count, len(NUMBERS))).round(6)
    columns = [pa.array(values[:, number]).cast(pa.string()).to_numpy(zero_copy_only=False) for number in range(6)]
    for fault in ("", "oops", "5000.5"):
        for row in np.flatnonzero(rng.random(count) < FAULTY_FRACTION / 3):
            columns[int(rng.integers(6))][row] = fault
    table = pa.table(
        [
            pa.array(np.arange(first_id, first_id + count)),
            *(pa.array(column, pa.string()) for column in columns),
            pa.array(CITIES[rng.integers(0, 8, count)]),
            pa.array([f"{number:08x}" for number in rng.integers(0, 2**32, count)]),
            pa.array(rng.integers(0, 4, count)),
        ],
        schema=_schema(),
    )
    order = np.arange(count)
    repeated = rng.random(count) < DUPLICATE_FRACTION
    order[repeated] = rng.integers(0, count, repeated.sum())
    return table.take(pa.array(np.sort(order)))
