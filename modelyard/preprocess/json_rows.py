"""Rows of JSON Lines files: every wanted value as text; lines that are no JSON object told apart."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import IO

import numpy as np
import polars as pl

from modelyard.errors import DataError
from modelyard.preprocess.clean import rejection
from modelyard.preprocess.formats import ReadConfig
from modelyard.preprocess.raw_rows import BATCH_BYTES, NULLS, ROW_BYTES, RawBatch, decoded


def line_blocks(stream: IO[bytes], name: str) -> Iterator[bytes]:
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


def json_names(block: bytes) -> list[str]:
    """Columns of the first lines."""
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


def json_batches(
    stream: IO[bytes], name: str, columns: Sequence[str], config: ReadConfig, show_torn: bool
) -> Iterator[RawBatch]:
    """Rows as texts, with what is no JSON object among them.

    Raises:
        DataError: a line is too long.
    """
    first = 1
    for block in line_blocks(stream, name):
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
        texts = [decoded(line) for line in block.removesuffix(b"\n").split(b"\n")]
        return pl.DataFrame({"line": [line or "" for line in texts], "bad": [line is None for line in texts]})


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
