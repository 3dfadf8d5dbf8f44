"""Which columns play which part, decided once from the first rows and then held against every file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Literal

import numpy as np
import polars as pl
import pyarrow as pa
import yaml
from pydantic import ConfigDict

from modelyard.artifacts import Frozen
from modelyard.errors import ConfigError, DataError
from modelyard.preprocess.config import EVERY, PreprocessConfig
from modelyard.preprocess.sections import ColumnConfig, Kind, NullPolicy
from modelyard.preprocess.values import integers, numbers, texts
from modelyard.task_kinds import LANGUAGE_TASKS

Role = Literal["feature", "target", "key"]
NO_RULE = ColumnConfig()


class Column(Frozen):
    """One column of the data set.

    Attributes:
        kind: what its values are; ``text`` also for keys and text labels, ``prose`` for a target that is a text or an item,
            ``spans`` for one that is parts of a text.
        low, high: allowed numbers, or dates as microseconds since 1970; both ends included.
        allowed: values that may occur, as text; None allows any.
        nulls: what becomes of a row without a value.
    """

    model_config = ConfigDict(ser_json_inf_nan="constants")

    name: str
    role: Role
    kind: Kind | Literal["text", "prose", "spans"]
    low: float = -np.inf
    high: float = np.inf
    allowed: tuple[str, ...] | None = None
    nulls: NullPolicy = "reject"
    rule: ColumnConfig = NO_RULE

    @property
    def is_number(self) -> bool:
        """Stored as float64: labels are not, a regression's target, the similarity of texts and weights are."""
        if self.role in ("target", "key"):
            return self.kind == "number"
        return self.kind in ("number", "integer", "boolean") and self.role == "feature"

    @property
    def stored(self) -> pa.DataType:
        if self.role == "target" and self.kind == "integer":
            return pa.int64()
        if self.is_number:
            return pa.float64()
        return pa.timestamp("us") if self.kind == "date" else pa.string()


class Plan(Frozen):
    """The columns of a data set.

    Attributes:
        columns: features in the network's order, target, then keys that are no features.
        identity: columns that decide the split; empty means the whole row.
        ignored: columns of the first file that nothing uses.
    """

    model_config = ConfigDict(ser_json_inf_nan="constants")

    columns: list[Column]
    identity: list[str]
    ignored: list[str]

    @property
    def features(self) -> list[str]:
        return [column.name for column in self.columns if column.role == "feature"]

    @property
    def target(self) -> Column:
        return next(column for column in self.columns if column.role == "target")

    @property
    def names(self) -> list[str]:
        return [column.name for column in self.columns]

    @property
    def table_schema(self) -> pa.Schema:
        """What a shard holds."""
        return pa.schema([(column.name, column.stored) for column in self.columns])


def make_plan(config: PreprocessConfig, name: str, first: pl.DataFrame) -> Plan:
    """The plan that follows from a config and the first rows of the first file that has any.

    Raises:
        DataError: a column is missing, or holds nothing that its part asks for.
        ConfigError: a rule for a column that plays no part.
    """
    if config.makes_columns:
        for column in config.named:
            if column not in first.columns:
                raise DataError(
                    f"{name}: column {column!r} is missing; the file, steps and label give {_some(first.columns)}"
                )
    features = _all_features(config, first) if config.features == EVERY else list(config.features)
    if config.task in LANGUAGE_TASKS:
        features = []
    elif not features:
        raise DataError(f"{name}: no numeric column besides the target; name the feature columns")
    _check_rules(config, features, first.columns)
    columns = [_feature(config, name, first[column]) for column in features]
    columns.append(_target(config, name, first[config.target]))
    keys = [key for key in config.named if key not in {*features, config.target}]
    columns += [_key(config, key) for key in keys]
    _check_near(config, columns)
    used = {column.name for column in columns}
    return Plan(
        columns=columns,
        identity=config.identity,
        ignored=[column for column in first.columns if column not in used],
    )


def check_columns(config: PreprocessConfig, name: str, columns: Sequence[str]) -> None:
    """What can be said of a file before its rows are read: the named columns are there, each once.

    Raises:
        DataError: names file, column and what the file has instead.
    """
    declared = [column for column, rule in config.columns.items() if rule.type and rule.sensitive != "drop"]
    for column in () if config.makes_columns else dict.fromkeys([*config.named, *declared]):
        if column not in columns:
            raise DataError(f"{name}: column {column!r} is missing; the file has {_some(columns)}")
    for column in columns:
        if columns.count(column) > 1:
            raise DataError(f"{name}: column {column!r} occurs more than once; rename one of them")


def check_file(plan: Plan, name: str, schema: Mapping[str, pl.DataType]) -> None:
    """Hold a file against the plan: every column is there, of a type that can be read as what it should be.

    Raises:
        DataError: names file, column, its type and what to do.
    """
    for column in plan.columns:
        if column.name not in schema:
            raise DataError(f"{name}: column {column.name!r} is missing; the file has {_some(schema)}")
        wanted = "a number" if column.is_number else "a label" if column.role == "target" else f"a {column.kind}"
        _check_type(name, column.name, schema[column.name], wanted, dates=column.kind in ("date", "text"))


def schema_yaml(config: PreprocessConfig, plan: Plan) -> bytes:
    """The plan as the `preprocess` part of a preset: what was said, and what was found where nothing was said."""
    columns = {}
    for column in plan.columns:
        rule = column.rule.model_dump(mode="json", exclude_defaults=True)
        if column.role == "feature":
            low, high = (None if np.isinf(bound) else bound for bound in (column.low, column.high))
            rule |= {"type": column.kind}
            rule |= {"range": [low, high]} if column.is_number and (low, high) != (None, None) else {}
            rule |= {"nulls": column.nulls} if column.nulls != "reject" else {}
        if rule:
            columns[column.name] = rule
    said = config.model_dump(mode="json", exclude_defaults=True, exclude={"ranges", "nulls", "workers"})
    dropped = {name: rule for name, rule in said.get("columns", {}).items() if name not in columns}
    features = (
        {} if config.task in LANGUAGE_TASKS else {"features": plan.features}
    )  # those learn from their target alone
    tree = said | {"target": config.target, **features, "columns": columns | dropped}
    return yaml.safe_dump({"preprocess": tree}, sort_keys=False, allow_unicode=True).encode()


def _check_type(name: str, column: str, kind: pl.DataType, wanted: str, *, dates: bool = False) -> None:
    is_date = kind == pl.Date or isinstance(kind, pl.Datetime)
    fits = kind.is_numeric() or kind in (pl.String, pl.Boolean, pl.Null) or (dates and is_date)
    if not fits:
        raise DataError(f"{name}: column {column!r} is of type {kind}, not {wanted}; convert it, or leave it out")


def _feature(config: PreprocessConfig, name: str, values: pl.Series) -> Column:
    rule = config.columns.get(values.name, NO_RULE)
    kind = rule.type or "number"
    if kind in ("number", "integer"):
        _check_has_numbers(name, values)
    nulls = config.nulls if values.name not in config.columns else rule.nulls
    low, high = rule.range or config.ranges.get(values.name, config.ranges.get(EVERY, (None, None)))
    if kind == "date":
        low, high = _microseconds(rule.earliest), _microseconds(rule.latest)
    return Column(
        name=values.name,
        role="feature",
        kind=kind,
        low=-np.inf if low is None else low,
        high=np.inf if high is None else high,
        allowed=_allowed(rule.values),
        nulls=nulls,
        rule=rule,
    )


def _target(config: PreprocessConfig, name: str, values: pl.Series) -> Column:
    rule = config.columns.get(config.target, NO_RULE)
    if config.task == "regression":
        _check_has_numbers(name, values)
        low, high = rule.range or (None, None)
        return Column(
            name=config.target,
            role="target",
            kind="number",
            low=-np.inf if low is None else low,
            high=np.inf if high is None else high,
            nulls=rule.nulls,
            rule=rule,
        )
    if config.task == "token_classification":  # the labels that may occur are looked for in the spans
        return Column(name=config.target, role="target", kind="spans", nulls=rule.nulls, rule=rule)
    labels = config.target_values or rule.values
    return Column(
        name=config.target,
        role="target",
        kind="prose" if config.task in (*LANGUAGE_TASKS, "embedding", "retrieval") else _label_kind(labels, values),
        allowed=_allowed(labels),
        nulls=rule.nulls,
        rule=rule,
    )


def _key(config: PreprocessConfig, name: str) -> Column:
    rule = config.columns.get(name, NO_RULE)
    is_time = name == config.split.time_column
    kind = (
        "date" if is_time or rule.type == "date" else "number" if name in (config.similarity, config.weight) else "text"
    )
    low, high = (_microseconds(rule.earliest), _microseconds(rule.latest)) if kind == "date" else (None, None)
    low = 0.0 if name == config.weight else low
    return Column(
        name=name,
        role="key",
        kind=kind,
        low=-np.inf if low is None else low,
        high=np.inf if high is None else high,
        allowed=_allowed(rule.values),
        nulls="drop" if rule.nulls == "drop" else "reject",
        rule=rule,
    )


def _check_rules(config: PreprocessConfig, features: Sequence[str], present: Sequence[str]) -> None:
    strangers = set(config.ranges) - set(features) - {EVERY}
    if strangers:
        raise ConfigError("preprocess.ranges", f"{min(strangers)!r} is not a feature; those are {_some(features)}")
    dropped = {name for name, rule in config.columns.items() if rule.sensitive == "drop"}
    strangers = set(config.columns) - set(present) - dropped
    if strangers:
        raise ConfigError(
            "preprocess.columns", f"{min(strangers)!r} is no column of the data; those are {_some(present)}"
        )


def _check_near(config: PreprocessConfig, columns: Sequence[Column]) -> None:
    """Near duplicates are looked for among texts."""
    if config.near_duplicates is None:
        return
    column = next(column for column in columns if column.name == config.near_duplicates.column)
    if column.stored != pa.string():
        raise ConfigError(
            "preprocess.near_duplicates.column",
            f"{column.name!r} holds {column.kind}s; texts that are nearly the same are looked for in a column of texts",
        )


def _check_has_numbers(name: str, values: pl.Series) -> None:
    """A column of words would have every row quarantined; better to say so at the first ones."""
    _check_type(name, values.name, values.dtype, "a number")
    _, unreadable = numbers(values)
    present = len(values) - values.null_count()
    if present and unreadable.sum() == present:
        raise DataError(
            f"{name}: column {values.name!r} should hold numbers but holds text such as {values.drop_nulls()[0]!r};"
            f" convert it, leave it out of the features, or set preprocess.columns.{values.name}.type to category"
        )


def _all_features(config: PreprocessConfig, first: pl.DataFrame) -> list[str]:
    others = {config.target, *(name for name in config.named if name not in config.features)}
    return [
        name
        for name in first.columns
        if name not in others and (config.columns.get(name, NO_RULE).type or _holds_numbers(first[name]))
    ]


def _holds_numbers(values: pl.Series) -> bool:
    """Declared as numbers, or text (as all of a CSV file) that mostly reads as numbers."""
    if values.dtype != pl.String:
        return values.dtype.is_numeric()
    _, unreadable = numbers(values)
    present = len(values) - values.null_count()
    return present > 0 and unreadable.sum() * 2 < present


def _label_kind(labels: Sequence[str | int] | None, values: pl.Series) -> Literal["integer", "text"]:
    if labels is not None:
        return "integer" if all(isinstance(label, int) for label in labels) else "text"
    present = texts(values).drop_nulls()
    whole, _ = integers(present)
    return "integer" if len(present) and whole.count() * 2 >= len(present) else "text"


def _allowed(values: Sequence[str | int] | None) -> tuple[str, ...] | None:
    return None if values is None else tuple(sorted(set(map(str, values))))


def _microseconds(moment: datetime | None) -> float | None:
    if moment is None:
        return None
    return float(np.datetime64(moment.replace(tzinfo=None), "us").astype(np.int64))


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:8]) + (f", ... ({len(listed)} columns)" if len(listed) > 8 else "")
