"""Telling good rows from bad ones. Pure: a batch goes in, clean rows and refused rows come out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa

from modelyard.preprocess.schema import Plan
from modelyard.preprocess.values import identity_texts, integers, label_texts, numbers

# Position is the code; 0 is a good value.
REASONS = ("", "null", "not a number", "not finite", "out of range", "not an integer", "unknown label")
NULL, NOT_A_NUMBER, NOT_FINITE, OUT_OF_RANGE, NOT_AN_INTEGER, UNKNOWN_LABEL = range(1, len(REASONS))

REJECTED_SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("row", pa.int64()),
        ("column", pa.string()),
        ("reason", pa.string()),
        ("value", pa.string()),
    ]
)


@dataclass(frozen=True)
class Cleaned:
    """A batch, told apart.

    Attributes:
        rows: clean rows with the plan's columns, in their order.
        rejected: one line for each refused row (`REJECTED_SCHEMA`), with the first thing that is wrong with it.
    """

    rows: pd.DataFrame
    rejected: pd.DataFrame


def clean(batch: pa.RecordBatch, plan: Plan, file: str, first_row: int) -> Cleaned:
    """Check every value of a batch.

    Args:
        batch: raw rows with the plan's columns.
        plan: what each column should be.
        file: name of the file they come from.
        first_row: number of the batch's first row in it, counted from 1 without a header.
    """
    features, feature_problems = _features(batch, plan)
    labels, label_problems = _labels(batch, plan)
    extra = {column: identity_texts(batch.column(column)) for column in plan.extra}
    missing = [texts.isna().to_numpy().astype(np.int8) * NULL for texts in extra.values()]
    problems = np.column_stack([feature_problems, label_problems, *missing])
    bad = problems.any(axis=1)
    frame = pd.DataFrame(features, columns=pd.Index(plan.features))
    frame = pd.concat([frame, labels.rename(plan.target), pd.DataFrame(extra)], axis=1)
    rejected = _describe(batch, plan, problems, np.flatnonzero(bad), file=file, first_row=first_row)
    return Cleaned(frame[~bad].reset_index(drop=True), rejected)


def _features(batch: pa.RecordBatch, plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    """Values (n, width) float64 and problem codes (n, width)."""
    read = [numbers(batch.column(column)) for column in plan.features]
    # -0.0 equals 0.0 and must not hash apart from it.
    values = np.column_stack([column for column, _ in read]) + 0.0
    unreadable = np.column_stack([mask for _, mask in read])
    problems = np.zeros(values.shape, dtype=np.int8)
    with np.errstate(invalid="ignore"):
        problems[(values < plan.low) | (values > plan.high)] = OUT_OF_RANGE
    problems[np.isinf(values)] = NOT_FINITE
    problems[np.isnan(values)] = NULL
    problems[unreadable] = NOT_A_NUMBER
    return values, problems


def _labels(batch: pa.RecordBatch, plan: Plan) -> tuple[pd.Series, np.ndarray]:
    """Labels as the plan stores them, and problem codes (n,)."""
    if plan.label_type == "number":
        return _numeric_labels(batch.column(plan.target))
    texts = label_texts(batch.column(plan.target))
    problems = np.zeros(len(texts), dtype=np.int8)
    labels = texts
    if plan.label_type == "integer":
        whole, readable = integers(texts)
        labels = pd.Series(whole)
        texts = labels.astype(str)
        problems[~readable] = NOT_AN_INTEGER
    if plan.labels is not None:
        problems[(problems == 0) & ~texts.isin(plan.labels).to_numpy()] = UNKNOWN_LABEL
    problems[label_texts(batch.column(plan.target)).isna().to_numpy()] = NULL
    return labels, problems


def _numeric_labels(column: pa.Array) -> tuple[pd.Series, np.ndarray]:
    values, unreadable = numbers(column)
    problems = np.zeros(len(values), dtype=np.int8)
    problems[np.isinf(values)] = NOT_FINITE
    problems[np.isnan(values)] = NULL
    problems[unreadable] = NOT_A_NUMBER
    return pd.Series(values + 0.0), problems


def _describe(
    batch: pa.RecordBatch, plan: Plan, problems: np.ndarray, bad: np.ndarray, *, file: str, first_row: int
) -> pd.DataFrame:
    """The quarantine's lines for the rows numbered ``bad``."""
    where = (problems[bad] > 0).argmax(axis=1)
    columns = [plan.columns[position] for position in where]
    return pd.DataFrame(
        {
            "file": [file] * len(bad),
            "row": (bad + first_row).astype(np.int64),
            "column": columns,
            "reason": [REASONS[code] for code in problems[bad, where]],
            "value": [_shown(batch.column(column)[int(row)]) for column, row in zip(columns, bad, strict=True)],
        }
    )


def _shown(value: pa.Scalar) -> str | None:
    return str(value.as_py())[:200] if value.is_valid else None
