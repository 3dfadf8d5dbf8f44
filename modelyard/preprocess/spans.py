"""Spans of a text, from how people write them to how a data set keeps them: checked, moved along with cleaning, and known
to begin and end with tokens of the network that will read the text.

    written   each row's spans, or words and tags, as JSON text, before columns are checked one by one
    aligned   the same for the cleaned text, behind that; a row with a span that cannot be kept is refused
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl

from modelyard.errors import DataError
from modelyard.preprocess.clean import Cleaned, rejection
from modelyard.preprocess.config import PreprocessConfig
from modelyard.preprocess.followed import follow
from modelyard.preprocess.values import texts
from modelyard.token_labels import Span, overlap, places, spans_json, spans_of_json, tags_at, words_and_tags
from modelyard.transform import TextTransform

KEYS = {"start", "end", "label"}
NOT_WORDS, NOT_SPANS = "not a list of words", "not a list of spans"
OUT_OF_RANGE, OVERLAPPING, UNKNOWN_LABEL = "span out of the text's range", "spans overlap", "unknown label"
LOST = "span that cleaning cut"
NOT_AT_TOKENS = "span that does not begin and end with tokens"
BEHIND = "span behind the tokens that are read"  # of transform.text.max_length


def written(rows: pl.DataFrame, config: PreprocessConfig, file: str) -> tuple[pl.DataFrame, np.ndarray, pl.DataFrame]:
    """Rows whose target is text: JSON of spans, as `spans_json` writes it.

    Returns:
        The rows; which of the given ones stayed, (n,); lines of the quarantine for the others, their ``row`` the place in
        the batch.

    Raises:
        DataError: the column of texts holds lists though spans are given.
    """
    column, target = config.text_column, config.target
    if column not in rows.columns or target not in rows.columns:
        return rows, np.ones(rows.height, dtype=bool), rejection(file, np.empty(0, np.int64), target, "")
    if config.spans.form == "spans" and isinstance(rows.schema[column], pl.List):
        raise DataError(f"{file}: column {column!r} holds lists of words; set preprocess.spans.form to tags")
    found, reasons = list[tuple[Any, str | None]](), dict[int, str]()
    for at, (text, said) in enumerate(zip(rows[column].to_list(), rows[target].to_list(), strict=True)):
        try:
            found.append(_read(text, said, config.spans.form))
        except (DataError, ValueError) as wrong:
            reasons[at] = str(wrong) if isinstance(wrong, DataError) else NOT_SPANS
    stays = np.array([at not in reasons for at in range(rows.height)], dtype=bool)
    lines = _lines(file, target, reasons, rows[target].to_list())
    rows = rows.filter(pl.Series(stays))
    changed = [pl.Series(target, [spans for _, spans in found], dtype=pl.String)]
    if config.spans.form == "tags":
        changed.append(pl.Series(column, [text for text, _ in found], dtype=pl.String))
    return rows.with_columns(changed), stays, lines


def aligned(cleaned: Cleaned, raw: pl.DataFrame, config: PreprocessConfig, reader: TextTransform, file: str) -> Cleaned:
    """The clean rows with spans over their clean texts.

    Args:
        raw: the batch that was cleaned, as `written` gave it.
        reader: of the text, by whose tokens spans begin and end.
    """
    column, target = reader.column, config.target
    allowed = set(map(str, config.columns[target].values or ())) if target in config.columns else set()
    before = texts(raw[column]).gather(cleaned.numbers).to_list()
    after, kept = cleaned.rows[column].to_list(), cleaned.rows[target].to_list()
    reasons, found = dict[int, str](), list[str]()
    for at, (text, clean, said, encoding) in enumerate(zip(before, after, kept, reader.encodings(after), strict=True)):
        try:
            spans = spans_of_json(said)
            _check(spans, text, allowed)
            spans = _moved(spans, text, clean, config)
            _check_tokens(spans, clean, encoding, reader)
            found.append(spans_json(spans))
        except DataError as wrong:
            reasons[at] = str(wrong)
    if not reasons:
        return replace(cleaned, rows=cleaned.rows.with_columns(pl.Series(target, found, dtype=pl.String)))
    stays = np.array([at not in reasons for at in range(len(kept))], dtype=bool)
    lines = _lines(file, target, {int(cleaned.numbers[at]): why for at, why in reasons.items()}, raw[target].to_list())
    rows = cleaned.rows.filter(pl.Series(stays)).with_columns(pl.Series(target, found, dtype=pl.String))
    rejected = pl.concat([cleaned.rejected, lines]).sort("row")
    return replace(cleaned, rows=rows, numbers=cleaned.numbers[stays], rejected=rejected)


def _read(text: Any, said: Any, form: str) -> tuple[Any, str | None]:
    """A text, and its spans as JSON; none where there are none to be read."""
    if form == "tags":
        words, tags = _listed(text, NOT_WORDS), _listed(said, "not a list of tags")
        if words is None or tags is None:
            return None, None
        if not all(isinstance(one, str) and one for one in words):
            raise DataError(NOT_WORDS)
        if not all(isinstance(one, str) for one in tags):
            raise DataError("not a BIO tag")
        joined, spans = words_and_tags(words, tags)
        return joined, spans_json(spans)
    listed = _listed(said, NOT_SPANS)
    return text, None if listed is None else spans_json([_span(one) for one in listed])


def _listed(value: Any, reason: str) -> list[Any] | None:
    if value is None or value == "":
        return None
    listed = json.loads(value) if isinstance(value, str) and value.lstrip().startswith("[") else value
    if not isinstance(listed, list):
        raise DataError(reason)
    return listed


def _span(said: Any) -> Span:
    if not isinstance(said, Mapping) or not said.keys() >= KEYS:
        raise DataError(NOT_SPANS)
    start, end, label = said["start"], said["end"], said["label"]
    if not (_whole(start) and _whole(end) and isinstance(label, str) and label):
        raise DataError(NOT_SPANS)
    return Span(start, end, label)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check(spans: Sequence[Span], text: str, allowed: set[str]) -> None:
    if any(not 0 <= span.start < span.end <= len(text) for span in spans):
        raise DataError(OUT_OF_RANGE)
    if overlap(spans):
        raise DataError(OVERLAPPING)
    if allowed and any(span.label not in allowed for span in spans):
        raise DataError(UNKNOWN_LABEL)


def _moved(spans: Sequence[Span], raw: str, clean: str, config: PreprocessConfig) -> list[Span]:
    if raw == clean or not spans:
        return list(spans)
    followed = follow(raw, clean, config.columns[config.text_column or ""].text)
    found = []
    for span in spans:
        place = followed.moved(span.start, span.end) if followed else None
        if place is None:
            raise DataError(LOST)
        found.append(Span(*place, span.label))
    return found


def _check_tokens(spans: Sequence[Span], text: str, encoding: Any, reader: TextTransform) -> None:
    where = places(encoding, text, reader.subwords)
    try:
        tags_at(spans, where, dict.fromkeys((span.label for span in spans), 0))
    except DataError:
        is_cut = bool(encoding.overflowing) or len(text) > reader.max_characters
        read = where[-1].end if where else 0
        raise DataError(BEHIND if is_cut and any(span.end > read for span in spans) else NOT_AT_TOKENS) from None


def _lines(file: str, column: str, reasons: Mapping[int, str], values: Sequence[Any]) -> pl.DataFrame:
    """Lines of the quarantine, with the place of each row in the batch."""
    shown = [
        value if isinstance(value, str) else json.dumps(value, default=str) for at in reasons for value in (values[at],)
    ]
    line = rejection(file, np.array([*reasons], dtype=np.int64), column, "", pl.Series(shown, dtype=pl.String))
    return line.with_columns(pl.Series("reason", [*reasons.values()], dtype=pl.String))
