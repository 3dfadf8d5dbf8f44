"""Telling good rows from bad ones. Pure: a batch goes in, clean rows and refused rows come out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa

from modelyard.preprocess.schema import Column, Plan
from modelyard.preprocess.sections import TextStep
from modelyard.preprocess.values import booleans, dates, integers, numbers, texts

# Position is the code; 0 is a good value.
REASONS = ("", "null", "not a number", "not finite", "out of range", "not an integer", "unknown label", "not a boolean",
           "not a date", "unknown value", "null, dropped")  # fmt: skip
(NULL, NOT_A_NUMBER, NOT_FINITE, OUT_OF_RANGE, NOT_AN_INTEGER, UNKNOWN_LABEL, NOT_A_BOOLEAN, NOT_A_DATE, UNKNOWN_VALUE,
 DROPPED) = range(1, len(REASONS))  # fmt: skip
SHOWN_CHARACTERS = 200
WHITESPACE, CONTROL = r"\s+", r"[\p{Cc}&&[^\t\n\r]]"

REJECTED_SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("row", pa.int64()),
        ("column", pa.string()),
        ("reason", pa.string()),
        ("value", pa.string()),
    ]
)
REJECTED_FRAME = {"file": pl.String, "row": pl.Int64, "column": pl.String, "reason": pl.String, "value": pl.String}


@dataclass(frozen=True)
class Cleaned:
    """A batch, told apart.

    Attributes:
        rows: clean rows with the plan's columns, in their order and types; null where a column's policy admits it.
        numbers: (n,) number of each clean row in its file.
        rejected: one line for each refused row (`REJECTED_SCHEMA`), with the first thing that is wrong with it.
        parsed: every row, bad ones too, as far as it could be read.
    """

    rows: pl.DataFrame
    numbers: np.ndarray
    rejected: pl.DataFrame
    parsed: pl.DataFrame


def clean(batch: pl.DataFrame, plan: Plan, file: str, rows: np.ndarray) -> Cleaned:
    """Check every value of a batch.

    Args:
        batch: raw rows with the plan's columns.
        plan: what each column should be.
        file: name of the file they come from.
        rows: (n,) number of each row in it, counted from 1 without a header.
    """
    checked = [_checked(batch[column.name], column) for column in plan.columns]
    frame = pl.DataFrame([values for values, _ in checked])
    bad = np.zeros(batch.height, dtype=bool)
    for _, problems in checked:
        if problems is not None:
            bad |= problems > 0
    if not bad.any():
        return Cleaned(frame, rows, pl.DataFrame(schema=REJECTED_FRAME), frame)
    rejected = _describe(batch, plan, [problems for _, problems in checked], np.flatnonzero(bad), file, rows)
    return Cleaned(frame.filter(pl.Series(~bad)), rows[~bad], rejected, frame)


def rejection(file: str, rows: np.ndarray, column: str, reason: str, values: pl.Series | None = None) -> pl.DataFrame:
    """Lines of the quarantine for rows that share column and reason."""
    shown = pl.Series([None] * len(rows), dtype=pl.String) if values is None else _shown(values)
    return pl.DataFrame(
        {
            "file": pl.Series([file], dtype=pl.String).new_from_index(0, len(rows)),
            "row": pl.Series(rows, dtype=pl.Int64),
            "column": pl.Series([column], dtype=pl.String).new_from_index(0, len(rows)),
            "reason": pl.Series([reason], dtype=pl.String).new_from_index(0, len(rows)),
            "value": shown,
        }
    )


def _checked(raw: pl.Series, column: Column) -> tuple[pl.Series, np.ndarray | None]:
    """Values as they are stored, and problem codes (n,) where there are any."""
    if column.role == "target" and not column.is_number:
        values, problems = _label(raw, column)
    elif column.is_number:
        values, problems = _number(raw, column)
    elif column.kind == "date":
        values, problems = _date(raw, column)
    else:
        values, problems = _text(raw, column)
    nulls = values.is_null()
    if nulls.any() and column.nulls in ("reject", "drop"):
        code = NULL if column.nulls == "reject" else DROPPED
        problems = np.where(nulls.to_numpy() & (problems == 0), code, problems)
    return values, problems if problems.any() else None


def _number(raw: pl.Series, column: Column) -> tuple[pl.Series, np.ndarray]:
    values, unreadable = booleans(raw) if column.kind == "boolean" else numbers(raw)
    plain = values.to_numpy()  # null as NaN, which compares as neither below nor above
    problems = np.zeros(len(plain), dtype=np.int8)
    problems[(plain < column.low) | (plain > column.high)] = OUT_OF_RANGE
    if column.kind == "integer":
        problems[np.isfinite(plain) & (plain != np.round(plain))] = NOT_AN_INTEGER
    problems[np.isinf(plain)] = NOT_FINITE
    problems[unreadable] = NOT_A_BOOLEAN if column.kind == "boolean" else NOT_A_NUMBER
    if column.allowed is not None:
        known = values.is_in([float(value) for value in column.allowed]).fill_null(value=True).to_numpy()
        problems[~known & (problems == 0)] = UNKNOWN_VALUE
    return values, problems


def _label(raw: pl.Series, column: Column) -> tuple[pl.Series, np.ndarray]:
    labels = normalised(texts(raw), column.rule.text)
    problems = np.zeros(len(raw), dtype=np.int8)
    if column.kind == "integer":
        labels, unreadable = integers(raw if raw.dtype != pl.String else labels)
        problems[unreadable] = NOT_AN_INTEGER
    if column.allowed is not None:
        known = labels.cast(pl.String).is_in(list(column.allowed)).fill_null(value=True).to_numpy()
        problems[~known & (problems == 0)] = UNKNOWN_LABEL
    return labels, problems


def _date(raw: pl.Series, column: Column) -> tuple[pl.Series, np.ndarray]:
    values, unreadable = dates(raw)
    problems = np.zeros(len(raw), dtype=np.int8)
    moments = values.to_physical().cast(pl.Float64).to_numpy()
    problems[(moments < column.low) | (moments > column.high)] = OUT_OF_RANGE
    problems[unreadable] = NOT_A_DATE
    return values, problems


def _text(raw: pl.Series, column: Column) -> tuple[pl.Series, np.ndarray]:
    values = normalised(texts(raw), column.rule.text)
    problems = np.zeros(len(raw), dtype=np.int8)
    if column.allowed is not None:
        known = values.is_in(list(column.allowed)).fill_null(value=True).to_numpy()
        problems[~known] = UNKNOWN_VALUE
    return values, problems


def normalised(values: pl.Series, steps: Sequence[TextStep]) -> pl.Series:
    """Texts after the steps, always in this order whatever order they were asked in."""
    if "nfc" in steps:
        values = values.str.normalize("NFC")
    if "control" in steps:
        values = values.str.replace_all(CONTROL, "")
    if "whitespace" in steps:
        values = values.str.replace_all(WHITESPACE, " ").str.strip_chars()
    if "lower" in steps:
        values = values.str.to_lowercase()
    return texts(values) if steps else values


def _describe(
    batch: pl.DataFrame,
    plan: Plan,
    problems: list[np.ndarray | None],
    bad: np.ndarray,
    file: str,
    rows: np.ndarray,
) -> pl.DataFrame:
    """The quarantine's lines for the rows at positions ``bad``, in their order."""
    codes = np.column_stack([np.zeros(len(bad)) if part is None else part[bad] for part in problems]).astype(np.int8)
    where = (codes > 0).argmax(axis=1)
    lines = []
    for number in np.unique(where):
        here = bad[where == number]
        name = plan.columns[number].name
        line = rejection(file, rows[here], name, "", batch[name].gather(here))
        reasons = [REASONS[code] for code in codes[where == number, number]]
        lines.append(line.with_columns(pl.Series("reason", reasons, dtype=pl.String)))
    return pl.concat(lines).sort("row")


def _shown(values: pl.Series) -> pl.Series:
    if values.dtype == pl.Binary:
        values = values.bin.encode("hex")
    return values.cast(pl.String, strict=False).str.slice(0, SHOWN_CHARACTERS)
