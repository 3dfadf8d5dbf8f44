"""The user's files as Arrow batches: fetched, verified against the snapshot, read a bounded piece at a time."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
from pyarrow import csv, parquet

from modelyard.catalog import file_sha256
from modelyard.errors import DataError, NotFound
from modelyard.preprocess.snapshot import Source
from modelyard.storage import Store

BATCH_ROWS = 8192
# What a CSV field may say instead of a value. Not "NA": it is also a country, and in a number column it is refused.
CSV_NULLS = ["", "NaN", "nan", "NULL", "null"]


@contextmanager
def fetched(store: Store, folder: str, source: Source, scratch: Path) -> Generator[Path]:
    """The source as a local file for as long as the context lasts.

    Raises:
        DataError: the object is gone, or no longer what the snapshot took down.
    """
    uri = f"{folder}/{source.name}"
    path = scratch / f"source{Path(source.name).suffix}"
    try:
        store.download(uri, path)
    except NotFound as gone:
        raise DataError(
            f"{uri}: gone since the snapshot was taken; put it back, or run again for a new snapshot"
        ) from gone
    try:
        if file_sha256(path) != source.sha256:
            raise DataError(f"{uri}: changed since the snapshot was taken; run again for a new snapshot")
        yield path
    finally:
        path.unlink()


def schema_of(path: Path, name: str) -> pa.Schema:
    """Columns of a file. Those of a CSV file are all text: it has no types of its own.

    Raises:
        DataError: the file cannot be read.
    """
    with _readable(name):
        if path.suffix == ".parquet":
            return parquet.read_schema(path).remove_metadata()
        with csv.open_csv(path) as reader:
            return pa.schema([(column, pa.string()) for column in reader.schema.names])


def batches(path: Path, name: str, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The named columns of a file, in order, at most a few thousand rows at a time.

    Raises:
        DataError: the file cannot be read to its end.
    """
    with _readable(name):
        if path.suffix == ".parquet":
            with parquet.ParquetFile(path) as file:
                yield from file.iter_batches(BATCH_ROWS, columns=list(columns))
            return
        convert = csv.ConvertOptions(
            include_columns=list(columns),
            column_types=dict.fromkeys(columns, pa.string()),
            null_values=CSV_NULLS,
            strings_can_be_null=True,
        )
        with csv.open_csv(path, parse_options=_csv_form(), convert_options=convert) as reader:
            yield from reader


def _csv_form() -> csv.ParseOptions:
    return csv.ParseOptions(newlines_in_values=True)


@contextmanager
def _readable(name: str) -> Generator[None]:
    try:
        yield
    except (pa.ArrowInvalid, pa.ArrowIOError) as failure:
        reason = str(failure).strip().splitlines()[0]
        raise DataError(
            f"{name}: cannot be read as {Path(name).suffix.lstrip('.')} ({reason}); repair or remove it"
        ) from failure
