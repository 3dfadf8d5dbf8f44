"""The user's files as batches of raw rows: fetched, verified against the snapshot, read a bounded piece at a time."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import polars as pl
import pyarrow as pa
from pyarrow import ipc, parquet

from modelyard.catalog import file_sha256
from modelyard.errors import DataError, NotFound
from modelyard.preprocess.csv_rows import csv_batches, csv_reader
from modelyard.preprocess.formats import FileKind, ReadConfig, detect
from modelyard.preprocess.image_rows import (
    MOST_BYTES,
    Picture,
    class_of,
    decoded,
    idx_pictures,
    idx_size,
    image_batches,
    image_columns,
    tar_pictures,
)
from modelyard.preprocess.json_rows import json_batches, json_names, line_blocks
from modelyard.preprocess.locations import local_path, may_be_read
from modelyard.preprocess.raw_rows import BATCH_BYTES, BATCH_ROWS, RawBatch
from modelyard.preprocess.snapshot import Source
from modelyard.preprocess.text_rows import TEXT_COLUMNS, text_batches
from modelyard.storage import Store

TAR_BLOCK = 512
# Forms whose columns follow from the config, or from the file's first bytes.
FIXED_COLUMNS: dict[str, Callable[[IO[bytes], str, ReadConfig], list[str]]] = {
    "text": lambda _stream, _name, _config: list(TEXT_COLUMNS),
    "image": lambda _stream, _name, config: image_columns(config),
    "tar": lambda _stream, _name, config: image_columns(config),
    "idx": lambda stream, name, config: image_columns(config, idx_size(stream, name)),
}


@contextmanager
def fetched(store: Store, folder: str, source: Source, scratch: Path) -> Generator[Path]:
    """The source as a local file for as long as the context lasts.

    Raises:
        DataError: the object is gone, or no longer what the snapshot took down.
    """
    uri = f"{folder}/{source.name}"
    own = local_path(uri)
    path = own or scratch / f"source-{source.sha256[:16]}"
    try:
        if own is None:
            store.download(uri, path)
        with may_be_read(uri):
            same = file_sha256(path) == source.sha256
    except (NotFound, FileNotFoundError) as gone:
        raise DataError(
            f"{uri}: gone since the snapshot was taken; put it back, or run again for a new snapshot"
        ) from gone
    before = path.stat()
    try:
        if not same:
            raise DataError(f"{uri}: changed since the snapshot was taken; run again for a new snapshot")
        yield path
        after = path.stat()
        if (before.st_mtime_ns, before.st_size) != (after.st_mtime_ns, after.st_size):
            raise DataError(f"{uri}: changed while it was read; run again for a new snapshot")
    finally:
        if own is None:
            path.unlink()


def columns_of(path: Path, name: str, kind: FileKind, config: ReadConfig) -> list[str]:
    """Names of a file's columns, as often as they occur.

    Raises:
        DataError: the file cannot be read.
    """
    with _readable(name, kind):
        if kind.format == "parquet":
            return list(parquet.read_schema(path).names)
        with _opened(path, kind) as stream:
            if kind.format == "arrow":
                return list(_arrow_reader(stream).schema.names)
            if kind.format in FIXED_COLUMNS:
                return FIXED_COLUMNS[kind.format](stream, name, config)
            if kind.format == "jsonl":
                return json_names(next(line_blocks(stream, name), b""))
            head = io.BytesIO(stream.read(BATCH_BYTES))
            with csv_reader(head, kind, config, None, lambda _: "skip") as reader:
                return list(reader.schema.names)


def batches(
    path: Path,
    name: str,
    kind: FileKind,
    columns: Sequence[str],
    config: ReadConfig,
    *,
    labels: Path | None = None,
    show_torn: bool = True,
) -> Iterator[RawBatch]:
    """The named columns of a file, in order, a bounded piece at a time.

    Args:
        labels: for an IDX file of images, that of its labels.
        show_torn: whether the text of a row that could not be told into columns may be kept.

    Raises:
        DataError: the file cannot be read to its end; says after which row.
    """
    done = 0
    with _readable(name, kind) as progress:
        found = _batches(path, name, kind, columns, config, show_torn)
        if kind.format == "idx":
            found = _idx_batches(path, labels, name, kind, columns, config)
        for batch in found:
            done += batch.num_read
            progress["rows"] = done
            yield batch


def _batches(
    path: Path, name: str, kind: FileKind, columns: Sequence[str], config: ReadConfig, show_torn: bool
) -> Iterator[RawBatch]:
    if kind.format == "parquet":
        yield from _numbered(_parquet_tables(path, columns))
        return
    with _opened(path, kind) as stream:
        if kind.format == "arrow":
            yield from _numbered(_arrow_tables(stream, columns))
        elif kind.format == "text":
            yield from text_batches(stream, name, columns, config, show_torn)
        elif kind.format == "image":  # by its content alone: the others are read together
            picture = Picture(path=name, label=class_of(name), pixels=decoded(stream.read(MOST_BYTES), config))
            yield from image_batches([picture], columns, image_columns(config), [name])
        elif kind.format == "tar":
            yield from image_batches(tar_pictures(stream, config), columns, image_columns(config), [name])
            _check_tar_end(path, name, kind)
        elif kind.format == "jsonl":
            yield from json_batches(stream, name, columns, config, show_torn)
        else:
            yield from csv_batches(stream, name, kind, columns, config, show_torn)


def _idx_batches(
    path: Path, labels: Path | None, name: str, kind: FileKind, columns: Sequence[str], config: ReadConfig
) -> Iterator[RawBatch]:
    if labels is None:
        raise DataError(f"{name}: an IDX file of images needs one of labels: call them images-idx3 and labels-idx1")
    with _opened(path, kind) as stream:
        known = image_columns(config, idx_size(stream, name))
    with _opened(path, kind) as stream, _opened(labels, detect(labels, f"labels of {name}", config)) as classes:
        yield from image_batches(idx_pictures(stream, classes, name, config), columns, known, [name])


def _check_tar_end(path: Path, name: str, kind: FileKind) -> None:
    """A tar file that was cut between two members looks whole but for its end."""
    if kind.packing is not None:
        return  # its packing says where it ends
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAR_BLOCK))
        end = file.read()
    if end != bytes(TAR_BLOCK):
        raise DataError(f"{name}: cut off: the archive has no end; upload it again")


def _parquet_tables(path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    with parquet.ParquetFile(path) as file:
        rows = max(1024, min(BATCH_ROWS, BATCH_BYTES // (8 * max(len(columns), 1))))
        yield from file.iter_batches(rows, columns=list(columns))


def _arrow_tables(stream: IO[bytes], columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    reader = _arrow_reader(stream)
    parts = (reader.get_batch(number) for number in range(reader.num_record_batches)) if _is_file(reader) else reader
    for part in parts:
        chosen = part.select(list(columns))
        for start in range(0, chosen.num_rows, BATCH_ROWS):
            yield chosen.slice(start, BATCH_ROWS)


def _arrow_reader(stream: IO[bytes]) -> Any:
    start = stream.read(6)
    stream.seek(0)
    return ipc.open_file(stream) if start == b"ARROW1" else ipc.open_stream(stream)


def _is_file(reader: Any) -> bool:
    return hasattr(reader, "num_record_batches")


def _numbered(parts: Iterator[pa.RecordBatch]) -> Iterator[RawBatch]:
    first = 1
    for part in parts:
        if part.num_rows:
            frame = pl.DataFrame(pl.from_arrow(part))
            frame = frame.with_columns(pl.col(pl.Categorical, pl.Enum).cast(pl.String))
            yield RawBatch(frame, np.arange(first, first + frame.height))
            first += frame.height


# -- opening ------------------------------------------------------------------------------------------------------


@contextmanager
def _opened(path: Path, kind: FileKind) -> Generator[Any]:
    # Not Arrow's own file: its CSV reader goes on reading ahead for a moment after it was closed, and would take bytes
    # from whatever file got the same descriptor next.
    with path.open("rb") as file, pa.PythonFile(file, mode="r") as plain:
        if kind.packing is None:
            yield plain
        else:
            with pa.CompressedInputStream(plain, kind.packing) as unpacked:
                yield unpacked


@contextmanager
def _readable(name: str, kind: FileKind) -> Generator[dict[str, int]]:
    """Turn what libraries say of a broken file into a sentence with the file, and how far it could be read."""
    progress = {"rows": 0}
    try:
        yield progress
    except (
        pa.ArrowInvalid,
        pa.ArrowIOError,
        OSError,
        EOFError,
        tarfile.TarError,
        pl.exceptions.PolarsError,
    ) as failure:
        reason = (str(failure).strip().splitlines() or [type(failure).__name__])[0]
        if "straddling" in reason:
            reason = f"a row is longer than {BATCH_BYTES // 2**20} MB, or a quote is never closed"
        behind = f" after row {progress['rows']}" if progress["rows"] else ""
        raise DataError(f"{name}: cannot be read as {kind.format}{behind} ({reason}); repair or remove it") from failure
