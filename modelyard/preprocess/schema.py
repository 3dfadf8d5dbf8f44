"""Which columns play which part, decided once from the first rows and then held against every file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from modelyard.errors import ConfigError, DataError
from modelyard.preprocess.config import EVERY, PreprocessConfig
from modelyard.preprocess.values import integers, label_texts, numbers

LabelType = Literal["integer", "text", "number"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The columns of a data set.

    Attributes:
        features: float64 columns, in the network's order.
        target: the column to predict, and how its labels are stored.
        identity: text columns that decide the split; empty means the whole row.
        ignored: columns of the first file that nothing uses.
        low, high: (width,) allowed feature values, both ends included.
        labels: labels that may occur, as text; None allows any.
    """

    features: list[str]
    target: str
    label_type: LabelType
    identity: list[str]
    ignored: list[str]
    low: np.ndarray
    high: np.ndarray
    labels: frozenset[str] | None

    @property
    def extra(self) -> list[str]:
        """Identity columns that are not features as well; those are stored once, as features."""
        return [column for column in self.identity if column not in self.features]

    @property
    def columns(self) -> list[str]:
        return [*self.features, self.target, *self.extra]

    @property
    def table_schema(self) -> pa.Schema:
        """What a shard holds."""
        label = {"integer": pa.int64(), "text": pa.string(), "number": pa.float64()}[self.label_type]
        return pa.schema(
            [(column, pa.float64()) for column in self.features]
            + [(self.target, label)]
            + [(column, pa.string()) for column in self.extra]
        )


def make_plan(config: PreprocessConfig, name: str, first: pa.RecordBatch) -> Plan:
    """The plan that follows from a config and the first rows of the first file that has any.

    Raises:
        DataError: a column is missing, or holds nothing that its part asks for.
        ConfigError: a range for a column that is no feature.
    """
    check_columns(config, name, first.schema)
    features = _all_numeric(config, first) if config.features == EVERY else list(config.features)
    if not features:
        raise DataError(f"{name}: no numeric column besides the target; name the feature columns")
    for column in features:
        _check_has_numbers(name, column, first.column(column))
    if config.task == "regression":
        _check_has_numbers(name, config.target, first.column(config.target))
    low, high = _bounds(config, features)
    used = {*features, config.target, *config.identity}
    return Plan(
        features=features,
        target=config.target,
        label_type=_label_type(config, first.column(config.target)),
        identity=config.identity,
        ignored=[column for column in first.schema.names if column not in used],
        low=low,
        high=high,
        labels=None if config.target_values is None else frozenset(map(str, config.target_values)),
    )


def check_columns(config: PreprocessConfig, name: str, schema: pa.Schema) -> None:
    """What can be said of a file before its rows are read: the named columns are there.

    Raises:
        DataError: names file, column and what the file has instead.
    """
    named = [] if config.features == EVERY else list(config.features)
    _check_present(name, [*named, config.target, *config.identity], schema)


def check_file(plan: Plan, name: str, schema: pa.Schema) -> None:
    """Hold a file against the plan: every column is there, of a type that can be read as what it should be.

    Raises:
        DataError: names file, column, its type and what to do.
    """
    _check_present(name, plan.columns, schema)
    for column in plan.features:
        _check_type(name, column, schema.field(column).type, "a number")
    _check_type(name, plan.target, schema.field(plan.target).type, "a label")


def _check_present(name: str, wanted: Sequence[str], schema: pa.Schema) -> None:
    for column in wanted:
        if column not in schema.names:
            raise DataError(f"{name}: column {column!r} is missing; the file has {_some(schema.names)}")
        if schema.names.count(column) > 1:
            raise DataError(f"{name}: column {column!r} occurs more than once; rename one of them")


def _check_type(name: str, column: str, kind: pa.DataType, wanted: str) -> None:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (_is_number(kind) or _is_text(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind)):
        raise DataError(f"{name}: column {column!r} is of type {kind}, not {wanted}; convert it, or leave it out")


def _check_has_numbers(name: str, column: str, values: pa.Array) -> None:
    """A column of words would have every row quarantined; better to say so at the first ones."""
    _check_type(name, column, values.type, "a number")
    _, unreadable = numbers(values)
    present = len(values) - values.null_count
    if present and unreadable.sum() == present:
        example = values.drop_null()[0].as_py()
        raise DataError(
            f"{name}: column {column!r} should hold numbers but holds {values.type} such as {example!r};"
            " convert it, or leave it out of the features"
        )


def _all_numeric(config: PreprocessConfig, first: pa.RecordBatch) -> list[str]:
    others = {config.target, *config.identity}
    return [
        field.name for field in first.schema if field.name not in others and _holds_numbers(first.column(field.name))
    ]


def _holds_numbers(values: pa.Array) -> bool:
    """Declared as numbers, or text (as all of a CSV file) that mostly reads as numbers."""
    if not _is_text(values.type):
        return _is_number(values.type)
    _, unreadable = numbers(values)
    present = len(values) - values.null_count
    return present > 0 and unreadable.sum() * 2 < present


def _label_type(config: PreprocessConfig, values: pa.Array) -> LabelType:
    if config.task == "regression":
        return "number"
    if config.target_values is not None:
        return "integer" if all(isinstance(value, int) for value in config.target_values) else "text"
    present = label_texts(values).dropna()
    _, readable = integers(present)
    return "integer" if len(present) and readable.sum() * 2 >= len(present) else "text"


def _bounds(config: PreprocessConfig, features: list[str]) -> tuple[np.ndarray, np.ndarray]:
    strangers = set(config.ranges) - set(features) - {EVERY}
    if strangers:
        raise ConfigError("preprocess.ranges", f"{min(strangers)!r} is not a feature; those are {_some(features)}")
    default = config.ranges.get(EVERY, (None, None))
    chosen = [config.ranges.get(column, default) for column in features]
    low = np.array([-np.inf if low is None else low for low, _ in chosen])
    high = np.array([np.inf if high is None else high for _, high in chosen])
    return low, high


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:8]) + (f", ... ({len(listed)} columns)" if len(listed) > 8 else "")
