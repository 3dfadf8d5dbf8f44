"""Rows of CSV files: torn ones told apart with their numbers, bytes made text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import IO, Any

import numpy as np
import polars as pl
import pyarrow as pa
from pyarrow import csv

from modelyard.errors import DataError
from modelyard.preprocess.clean import rejection
from modelyard.preprocess.formats import FileKind, ReadConfig
from modelyard.preprocess.raw_rows import BATCH_BYTES, NULLS, RawBatch, decoded

TORN_BYTES = 2**20  # a torn row of that size has swallowed others


def csv_reader(
    stream: IO[bytes], kind: FileKind, config: ReadConfig, columns: Sequence[str] | None, on_torn: Any
) -> csv.CSVStreamingReader:
    """pyarrow's reader of these columns (None: all), as bytes; ``on_torn`` is called for each row that does not fit."""
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


def csv_batches(
    stream: IO[bytes], name: str, kind: FileKind, columns: Sequence[str], config: ReadConfig, show_torn: bool
) -> Iterator[RawBatch]:
    """Rows as texts, with what was torn among them.

    Raises:
        DataError: a quote is never closed.
    """
    torn = _TornRows(name, show_torn)
    first = 1
    with csv_reader(stream, kind, config, columns, torn.take) as reader:
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
            texts = [None if value is None else decoded(value) for value in values]
            columns.append(pl.Series(values.name, texts, dtype=pl.String))
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


def _repeats_header(rows: pl.DataFrame) -> np.ndarray:
    same = (rows.to_series(0) == rows.columns[0]).fill_null(value=False)
    for values in rows.iter_columns():
        if not same.any():
            break
        same &= (values == values.name).fill_null(value=False)
    return same.to_numpy()
