"""The user's files as batches of raw rows: fetched, verified against the snapshot, read a bounded piece at a time."""

from __future__ import annotations

import io
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import polars as pl
import pyarrow as pa
from pyarrow import csv, ipc, parquet

from modelyard.catalog import file_sha256
from modelyard.errors import DataError, NotFound
from modelyard.preprocess.clean import rejection
from modelyard.preprocess.formats import FileKind, ReadConfig
from modelyard.preprocess.locations import local_path
from modelyard.preprocess.snapshot import Source
from modelyard.storage import Store

BATCH_BYTES = 8 * 2**20
# A longer row is refused: a quote that is never closed would otherwise be read as one field, up to the file's end.
ROW_BYTES = BATCH_BYTES
TORN_BYTES = 2**20  # a torn row of that size has swallowed others
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
    """

    rows: pl.DataFrame
    numbers: np.ndarray
    torn: pl.DataFrame | None = None

    @property
    def num_read(self) -> int:
        return self.rows.height + (0 if self.torn is None else self.torn.height)


@contextmanager
def fetched(store: Store, folder: str, source: Source, scratch: Path) -> Generator[Path]:
    """The source as a local file for as long as the context lasts.

    Raises:
        DataError: the object is gone, or no longer what the snapshot took down.
    """
    uri = f"{folder}/{source.name}"
    own = local_path(uri)
    path = own or scratch / "source"
    try:
        if own is None:
            store.download(uri, path)
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
            if kind.format == "jsonl":
                return _json_names(next(_line_blocks(stream, name), b""))
            head = io.BytesIO(stream.read(BATCH_BYTES))
            with _csv_reader(head, kind, config, None, lambda _: "skip") as reader:
                return list(reader.schema.names)


def batches(
    path: Path, name: str, kind: FileKind, columns: Sequence[str], config: ReadConfig, *, show_torn: bool = True
) -> Iterator[RawBatch]:
    """The named columns of a file, in order, a bounded piece at a time.

    Args:
        show_torn: whether the text of a row that could not be told into columns may be kept.

    Raises:
        DataError: the file cannot be read to its end; says after which row.
    """
    done = 0
    with _readable(name, kind) as progress:
        for batch in _batches(path, name, kind, columns, config, show_torn):
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
        elif kind.format == "jsonl":
            yield from _json_batches(stream, name, columns, config, show_torn)
        else:
            yield from _csv_batches(stream, name, kind, columns, config, show_torn)


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


# -- CSV ----------------------------------------------------------------------------------------------------------


def _csv_reader(
    stream: IO[bytes], kind: FileKind, config: ReadConfig, columns: Sequence[str] | None, on_torn: Any
) -> csv.CSVStreamingReader:
    return csv.open_csv(
        stream,
        # One thread, so that a row that does not fit is told with its number.
        csv.ReadOptions(block_size=BATCH_BYTES, use_threads=False, encoding=config.encoding),
        csv.ParseOptions(delimiter=kind.delimiter, newlines_in_values=True, invalid_row_handler=on_torn),
        csv.ConvertOptions(
            include_columns=list(columns or []),
            column_types=dict.fromkeys(columns or [], pa.binary()),
            null_values=[*NULLS, *config.nulls],
            strings_can_be_null=True,
        ),
    )


def _csv_batches(
    stream: IO[bytes], name: str, kind: FileKind, columns: Sequence[str], config: ReadConfig, show_torn: bool
) -> Iterator[RawBatch]:
    torn = _TornRows(name, show_torn)
    first = 1
    with _csv_reader(stream, kind, config, columns, torn.take) as reader:
        for part in reader:
            numbers, broken = torn.number(first, part.num_rows)
            first += part.num_rows + (0 if broken is None else broken.height)
            yield _checked_text(RawBatch(pl.DataFrame(pl.from_arrow(part)), numbers, broken), name, show_torn)
    rest = torn.rest()
    if rest is not None:
        yield RawBatch(pl.DataFrame(schema=dict.fromkeys(columns, pl.String)), np.zeros(0, dtype=np.int64), rest)


class _TornRows:
    """Rows that do not have as many fields as the header, collected while the parser goes on."""

    def __init__(self, name: str, show: bool) -> None:
        self._name, self._show = name, show
        self._waiting: list[tuple[int, str, str | None]] = []
        self._swallowed: tuple[int, int] | None = None

    def take(self, row: csv.InvalidRow) -> str:
        """Called by the parser, possibly ahead of the batches that were handed on."""
        reason = f"{row.actual_columns} fields instead of {row.expected_columns}"
        breaks = row.text.rstrip().count("\n")
        if breaks:
            reason += f", over {breaks + 1} lines"
        if len(row.text) > TORN_BYTES:
            self._swallowed = self._swallowed or (row.number - 1, breaks + 1)
        self._waiting.append((row.number - 1, reason, row.text[:200] if self._show else None))  # the header is row 1
        return "skip"

    def number(self, first: int, count: int) -> tuple[np.ndarray, pl.DataFrame | None]:
        """Numbers of the next ``count`` good rows, and the torn rows among and before them."""
        waiting = np.array([number for number, _, _ in self._waiting], dtype=np.int64)
        good = np.arange(count)
        # The i-th good row stands behind every torn one whose number, less the torn ones before it, is not above it.
        shift = np.searchsorted(waiting - np.arange(len(waiting)) - first, good, side="right")
        numbers = first + good + shift
        last = int(numbers[-1]) if count else first - 1
        passed = int(np.searchsorted(waiting, last, side="right"))
        now, self._waiting = self._waiting[:passed], self._waiting[passed:]
        return numbers, self._lines(now)

    def rest(self) -> pl.DataFrame | None:
        """Those behind the last good row."""
        return self._lines(self._waiting)

    def _lines(self, torn: Sequence[tuple[int, str, str | None]]) -> pl.DataFrame | None:
        if self._swallowed:
            number, lines = self._swallowed
            raise DataError(
                f"{self._name}: row {number} goes over {lines} lines and does not fit: a quote is never closed; repair it"
            )
        if not torn:
            return None
        numbers, reasons, values = zip(*torn, strict=True)
        lines = rejection(self._name, np.array(numbers), "", "", pl.Series(values, dtype=pl.String))
        return lines.with_columns(pl.Series("reason", reasons, dtype=pl.String))


def _checked_text(batch: RawBatch, name: str, show: bool) -> RawBatch:
    """Bytes to text; rows that are no UTF-8, and headers in the middle, are taken out."""
    bad = np.zeros(batch.rows.height, dtype=bool)
    torn = [] if batch.torn is None else [batch.torn]
    columns = []
    for values in batch.rows:
        try:
            columns.append(values.cast(pl.String))
        except pl.exceptions.PolarsError:
            decoded = [None if value is None else _decoded(value) for value in values]
            columns.append(pl.Series(values.name, decoded, dtype=pl.String))
            wrong = (columns[-1].is_null() & values.is_not_null()).to_numpy() & ~bad
            shown = values.filter(pl.Series(wrong)) if show else None
            torn.append(rejection(name, batch.numbers[wrong], values.name, "not UTF-8", shown))
            bad |= wrong
    rows = pl.DataFrame(columns)
    repeated = _repeats_header(rows) & ~bad
    if repeated.any():
        torn.append(rejection(name, batch.numbers[repeated], "", "the header again"))
        bad |= repeated
    if not bad.any():
        return RawBatch(rows, batch.numbers, batch.torn)
    return RawBatch(rows.filter(pl.Series(~bad)), batch.numbers[~bad], pl.concat(torn).sort("row"))


def _decoded(value: bytes) -> str | None:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return None


def _repeats_header(rows: pl.DataFrame) -> np.ndarray:
    same = (rows.to_series(0) == rows.columns[0]).fill_null(value=False)
    for values in rows.iter_columns():
        if not same.any():
            break
        same &= (values == values.name).fill_null(value=False)
    return same.to_numpy()


# -- JSON Lines ---------------------------------------------------------------------------------------------------


def _line_blocks(stream: IO[bytes], name: str) -> Iterator[bytes]:
    """Whole lines, about `BATCH_BYTES` of them at a time."""
    rest = b""
    while block := stream.read(BATCH_BYTES):
        head, newline, tail = block.rpartition(b"\n")
        if newline:
            yield rest + head + newline
            rest = tail
        else:
            rest += block
        if len(rest) > ROW_BYTES:
            raise DataError(f"{name}: a line is longer than {ROW_BYTES // 2**20} MB; repair or remove it")
    if rest:
        yield rest


def _json_names(block: bytes) -> list[str]:
    lines = [line for line in block.splitlines() if line.strip()]
    try:
        return pl.read_ndjson(io.BytesIO(b"\n".join(lines)), infer_schema_length=None).columns
    except pl.exceptions.PolarsError:
        return _names_of_readable(lines[:1000])


def _names_of_readable(lines: Sequence[bytes]) -> list[str]:
    """Where some of the first lines are broken: the columns of those that are not."""
    names: dict[str, None] = {}
    for line in lines:
        try:
            names |= dict.fromkeys(pl.read_ndjson(io.BytesIO(line)).columns)
        except pl.exceptions.PolarsError:
            continue
    return list(names)


def _json_batches(
    stream: IO[bytes], name: str, columns: Sequence[str], config: ReadConfig, show_torn: bool
) -> Iterator[RawBatch]:
    first = 1
    for block in _line_blocks(stream, name):
        lines = _lines(block)
        numbers = np.arange(first, first + lines.height)
        first += lines.height
        filled = (lines["line"].str.strip_chars() != "").to_numpy() | lines["bad"].to_numpy()
        batch = _json_batch(lines.filter(pl.Series(filled)), numbers[filled], name, columns, show_torn)
        yield replace(batch, rows=_without_nulls(batch.rows, config.nulls))


def _lines(block: bytes) -> pl.DataFrame:
    """The lines, and which of them are no text."""
    try:
        lines = pl.Series("line", block.decode().removesuffix("\n").split("\n"))
        return pl.DataFrame({"line": lines, "bad": pl.Series([False]).new_from_index(0, len(lines))})
    except UnicodeDecodeError:
        decoded = [_decoded(line) for line in block.removesuffix(b"\n").split(b"\n")]
        return pl.DataFrame({"line": [line or "" for line in decoded], "bad": [line is None for line in decoded]})


def _json_batch(
    lines: pl.DataFrame, numbers: np.ndarray, name: str, columns: Sequence[str], show_torn: bool
) -> RawBatch:
    """Every wanted value as text. Lines that are no JSON object are told apart one by one only where there are any."""
    schema = dict.fromkeys(columns, pl.String)
    rows = None if lines["bad"].any() else _read_json("\n".join(lines["line"]), schema)
    if rows is not None and rows.height == lines.height:
        return RawBatch(rows, numbers)
    good = np.array([not bad and _is_object(line) for line, bad in lines.iter_rows()], dtype=bool)
    text = "\n".join(lines["line"].filter(pl.Series(good)))
    rows = pl.read_ndjson(io.BytesIO(text.encode()), schema=schema) if good.any() else pl.DataFrame(schema=schema)
    shown = lines["line"].filter(pl.Series(~good)) if show_torn else None
    reasons = ["not UTF-8" if bad else "not a JSON object" for bad in lines["bad"].filter(pl.Series(~good))]
    torn = rejection(name, numbers[~good], "", "", shown).with_columns(pl.Series("reason", reasons, dtype=pl.String))
    return RawBatch(rows, numbers[good], torn)


def _is_object(line: str) -> bool:
    return line.lstrip().startswith("{") and _read_json(line, None) is not None


def _read_json(text: str, schema: Mapping[str, type[pl.String]] | None) -> pl.DataFrame | None:
    try:
        return pl.read_ndjson(io.BytesIO(text.encode()), schema=schema)
    except pl.exceptions.PolarsError:
        return None


def _without_nulls(rows: pl.DataFrame, more: Sequence[str]) -> pl.DataFrame:
    return rows.with_columns(pl.when(pl.all().is_in([*NULLS, *more])).then(None).otherwise(pl.all()).name.keep())


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
    except (pa.ArrowInvalid, pa.ArrowIOError, OSError, pl.exceptions.PolarsError) as failure:
        reason = (str(failure).strip().splitlines() or [type(failure).__name__])[0]
        if "straddling" in reason:
            reason = f"a row is longer than {BATCH_BYTES // 2**20} MB, or a quote is never closed"
        behind = f" after row {progress['rows']}" if progress["rows"] else ""
        raise DataError(f"{name}: cannot be read as {kind.format}{behind} ({reason}); repair or remove it") from failure
