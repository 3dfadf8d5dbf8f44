"""Rows of plain text files: a line, a paragraph or the whole file as ``text``, the folder as ``label``, ``file``."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import IO

import numpy as np
import polars as pl

from modelyard.errors import ConfigError, DataError
from modelyard.preprocess.clean import rejection
from modelyard.preprocess.formats import ReadConfig
from modelyard.preprocess.image_rows import FILE, LABEL, class_of
from modelyard.preprocess.json_rows import line_blocks
from modelyard.preprocess.raw_rows import BATCH_ROWS, ROW_BYTES, RawBatch

TEXT = "text"
TEXT_COLUMNS = [TEXT, LABEL, FILE]
_Line = tuple[int, str | None, bytes]  # number of its first line, text or None where it cannot be decoded, bytes


def text_batches(
    stream: IO[bytes], name: str, columns: Sequence[str], config: ReadConfig, show_torn: bool
) -> Iterator[RawBatch]:
    """Rows, with what is not in the encoding among them; empty lines and paragraphs are no rows.

    Raises:
        DataError: a row is too long.
        ConfigError: there is no such encoding, or none whose lines end in the byte of a line feed.
    """
    _check_encoding(config.encoding)
    rows = {"line": _lines, "paragraph": _paragraphs, "file": _whole}[config.text_rows](stream, name, config.encoding)
    while some := list(islice(rows, BATCH_ROWS // 8)):
        good = [(number, text) for number, text, _ in some if text is not None]
        bad = [(number, body) for number, text, body in some if text is None]
        texts = pl.Series(TEXT, [text for _, text in good], dtype=pl.String)
        frame = pl.DataFrame({TEXT: texts}).with_columns(
            pl.lit(class_of(name), dtype=pl.String).alias(LABEL), pl.lit(name).alias(FILE)
        )
        torn = None
        if bad:
            shown = pl.Series([body[:100].hex() if show_torn else None for _, body in bad], dtype=pl.String)
            numbers = np.array([number for number, _ in bad])
            torn = rejection(name, numbers, TEXT, f"not {config.encoding}", shown)
        yield RawBatch(frame.select(columns), np.array([number for number, _ in good], dtype=np.int64), torn)


def _check_encoding(encoding: str) -> None:
    try:
        fits = "\n".encode(encoding) == b"\n"
    except LookupError:
        fits = False
    if not fits:
        raise ConfigError("preprocess.read.encoding", f"{encoding!r} is no encoding that plain text can be read in")


def _lines(stream: IO[bytes], name: str, encoding: str) -> Iterator[_Line]:
    number = 0
    for block in line_blocks(stream, name):
        for line in block.removesuffix(b"\n").split(b"\n"):
            number += 1
            body = (line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).removesuffix(b"\r")
            if body.strip():
                yield number, _decoded(body, encoding), body


def _paragraphs(stream: IO[bytes], name: str, encoding: str) -> Iterator[_Line]:
    """Lines until an empty one."""
    start, waiting, size, last = 0, list[_Line](), 0, 0
    for line in _lines(stream, name, encoding):
        if waiting and line[0] > last + 1:
            yield _joined(start, waiting)
            waiting, size = [], 0
        start = line[0] if not waiting else start
        waiting.append(line)
        size += len(line[2])
        last = line[0]
        if size > ROW_BYTES:
            raise DataError(f"{name}: a paragraph is longer than {ROW_BYTES // 2**20} MB; read it line by line")
    if waiting:
        yield _joined(start, waiting)


def _whole(stream: IO[bytes], name: str, encoding: str) -> Iterator[_Line]:
    body = stream.read(ROW_BYTES + 1)
    if len(body) > ROW_BYTES:
        raise DataError(f"{name}: longer than {ROW_BYTES // 2**20} MB; read it by line or paragraph")
    body = body.removeprefix(codecs.BOM_UTF8)
    if body.strip():
        yield 1, _decoded(body, encoding), body


def _joined(start: int, lines: Sequence[_Line]) -> _Line:
    texts = [text for _, text, _ in lines if text is not None]
    whole = "\n".join(texts) if len(texts) == len(lines) else None
    return start, whole, b"\n".join(body for _, _, body in lines)


def _decoded(body: bytes, encoding: str) -> str | None:
    try:
        return body.decode(encoding)
    except UnicodeDecodeError:
        return None
