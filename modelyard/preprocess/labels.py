"""Where labels come from if no column holds them as they should be: a mapping, an expression, or several functions.

Functions vote, as in data programming (Ratner et al., 2016) without its model: the label that most of them give wins, a
tie or silence is no label. How often each spoke, disagreed and was on the winning side goes into the report.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd
import polars as pl
from pydantic import Field, model_validator

from modelyard.artifacts import Frozen
from modelyard.errors import ConfigError, DataError
from modelyard.preprocess.steps import load


class LabelConfig(Frozen):
    """How the target column is made; at most one of ``expression`` and ``functions``, then ``mapping``."""

    mapping: dict[str, str | int] | None = Field(
        None, min_length=1, description="value -> label; a value that is not named is no label"
    )
    expression: str | None = Field(None, description="SQL over the columns: CAST(price AS DOUBLE) > 100")
    functions: list[str] = Field(
        default_factory=list,
        description="module:function of yours: a pandas batch to one label for each row, None where it has none",
    )
    suspects: int = Field(
        0, ge=0, le=1000, description="so many training rows whose label is probably wrong are listed; 0: nobody looks"
    )

    @model_validator(mode="after")
    def _one_source(self) -> LabelConfig:
        if self.expression and self.functions:
            raise ValueError("label: an expression or functions, not both")
        if len(set(self.functions)) < len(self.functions):
            raise ValueError("label.functions: a function votes once")
        return self

    @property
    def makes_column(self) -> bool:
        return bool(self.expression or self.functions)


class Votes:
    """What labelling functions did, in counts that partitions add up."""

    FACTS = ("rows", "covered", "overlaps", "conflicts", "wins")

    def __init__(self) -> None:
        self.counts: dict[str, Counter[str]] = {}

    def add(self, function: str, **counts: int) -> None:
        self.counts.setdefault(function, Counter()).update(counts)

    def merge(self, state: dict[str, dict[str, int]]) -> None:
        for function, counts in state.items():
            self.add(function, **counts)

    def state(self) -> dict[str, dict[str, int]]:
        return {name: {fact: counts[fact] for fact in self.FACTS} for name, counts in sorted(self.counts.items())}


def labelled(rows: pl.DataFrame, target: str, config: LabelConfig, file: str, votes: Votes) -> pl.DataFrame:
    """The rows with their target column.

    Raises:
        DataError: a function fails, or gives another number of labels.
        ConfigError: the expression cannot be read, or speaks of a column that is not there.
    """
    if config.expression:
        rows = rows.with_columns(_evaluated(rows, config.expression).alias(target))
    elif config.functions:
        rows = rows.with_columns(pl.Series(target, _voted(rows, config.functions, file, votes), dtype=pl.String))
    if config.mapping is not None:
        if target not in rows.columns:
            raise DataError(f"{file}: column {target!r} is missing; label.mapping is about its values")
        known = {value: str(label) for value, label in config.mapping.items()}
        said = rows[target].cast(pl.String, strict=False).str.strip_chars()
        rows = rows.with_columns(said.replace_strict(known, default=None, return_dtype=pl.String).alias(target))
    return rows


def _evaluated(rows: pl.DataFrame, expression: str) -> pl.Series:
    try:
        found = rows.select(pl.sql_expr(expression).alias("label")).to_series()
    except pl.exceptions.PolarsError as failure:
        reason = str(failure).strip().splitlines()[0]
        raise ConfigError("preprocess.label.expression", f"{expression!r} cannot be worked out: {reason}") from failure
    if len(found) != rows.height:
        raise ConfigError(
            "preprocess.label.expression", f"{expression!r} gives {len(found)} labels for {rows.height} rows"
        )
    return found.cast(pl.Int64) if found.dtype == pl.Boolean else found


def _voted(rows: pl.DataFrame, functions: Sequence[str], file: str, votes: Votes) -> list[str | None]:
    frame = rows.to_pandas()
    said = np.array([_asked(frame.copy(), function, file) for function in functions], dtype=object).T
    winners = [_winner(row) for row in said]
    spoke = np.array([[label is not None for label in row] for row in said])
    num_spoke = spoke.sum(axis=1)
    conflict = np.array([len({label for label in row if label is not None}) > 1 for row in said])
    for at, function in enumerate(functions):
        wins = sum(label is not None and label == winner for label, winner in zip(said[:, at], winners, strict=True))
        votes.add(
            function,
            rows=len(said),
            covered=int(spoke[:, at].sum()),
            overlaps=int((spoke[:, at] & (num_spoke > 1)).sum()),
            conflicts=int((spoke[:, at] & conflict).sum()),
            wins=wins,
        )
    return winners


def _asked(frame: pd.DataFrame, function: str, file: str) -> list[str | None]:
    called = load(function, "preprocess.label.functions")
    try:
        labels = list(called(frame))
    except Exception as failure:
        raise DataError(
            f"{file}: labelling function {function} failed: {type(failure).__name__}: {failure}"
        ) from failure
    if len(labels) != len(frame):
        raise DataError(f"{file}: labelling function {function} gave {len(labels)} labels for {len(frame)} rows")
    return [None if pd.isna(label) else _text(label) for label in labels]


def _text(label: object) -> str:
    """1, 1.0 and "1" are one label: a column with gaps holds floats."""
    if isinstance(label, float | np.floating) and float(label).is_integer():
        return str(int(label))
    return str(label)


def _winner(said: Sequence[str | None]) -> str | None:
    counts = Counter(label for label in said if label is not None).most_common(2)
    if not counts or (len(counts) == 2 and counts[0][1] == counts[1][1]):
        return None
    return counts[0][0]
