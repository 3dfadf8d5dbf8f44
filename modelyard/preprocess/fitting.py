"""What the transform needs to know of the training rows, gathered by partition, and what follows from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import numpy as np
import polars as pl

from modelyard.errors import ConfigError
from modelyard.preprocess.config import PreprocessConfig
from modelyard.preprocess.schema import Column, Plan
from modelyard.transform import (
    Counts,
    DateParts,
    FeatureScale,
    FittedTransform,
    HashedCategory,
    Moments,
    Sample,
    fit_category,
    fit_scales,
)
from modelyard.transform.features import Category, Feature
from modelyard.transform.fit import SAMPLE_VALUES
from modelyard.transform.reduce import extract, select

FIT_ROWS = 8192  # rows per batch of the passes that reduce; fixed, because the last digits depend on it
SAMPLE_ROWS = 20_000  # of which mutual information is estimated
TrainRows = Callable[[], Iterator[pl.DataFrame]]


class TrainStatistics:
    """What the transform and the target need of some training rows; partitions keep theirs, and `merge` adds them up.

    Args:
        limit: values kept of a column whose quantiles are needed.
    """

    def __init__(self, config: PreprocessConfig, plan: Plan, limit: int = SAMPLE_VALUES) -> None:
        features = [column for column in plan.columns if column.role == "feature"]
        self.numbers = [column for column in features if column.kind not in ("category", "text")]
        self.num_rows = 0
        self.moments: Moments | None = None
        self.samples = {column.name: Sample(limit) for column in features if _needs_quantiles(column)}
        self.counts = {column.name: Counts(column.name) for column in features if _needs_counts(config, column)}
        if config.task == "retrieval" and config.transform.categories != "hashing":
            self.counts[plan.target.name] = Counts(plan.target.name)
        self.target: Moments | None = None
        self._target = plan.target

    def add(self, shard: pl.DataFrame) -> None:
        """Take in the next rows; how they are cut shows in the last digits."""
        self.num_rows += shard.height
        if self.numbers:
            numbers = [physical(shard[column.name]) for column in self.numbers]
            self.moments = _merged(self.moments, Moments.of(np.column_stack(numbers)))
        if self._target.is_number:
            self.target = _merged(self.target, Moments.of(shard[[self._target.name]].to_numpy()))
        for name, sample in self.samples.items():
            sample.add(shard[name].to_numpy())
        for name, counts in self.counts.items():
            found = shard[name].drop_nulls().value_counts(name="\x01rows")
            counts.add(_texts(found[name]), found["\x01rows"].to_list())

    def state(self) -> dict[str, Any]:
        return {
            "rows": self.num_rows,
            "moments": self.moments.state() if self.moments else None,
            "target": self.target.state() if self.target else None,
            "samples": {name: sample.state() for name, sample in self.samples.items()},
            "counts": {name: counts.state() for name, counts in self.counts.items()},
        }

    def merge(self, state: dict[str, Any]) -> None:
        self.num_rows += state["rows"]
        if state["moments"]:
            self.moments = _merged(self.moments, Moments.of_state(state["moments"]))
        if state["target"]:
            self.target = _merged(self.target, Moments.of_state(state["target"]))
        for name, sample in self.samples.items():
            sample.merge(*state["samples"][name])
        for name, counts in self.counts.items():
            counts.add(*state["counts"][name])


class TransformFitter:
    """Makes the transform of the training split's statistics."""

    def __init__(self, config: PreprocessConfig, plan: Plan, statistics: TrainStatistics) -> None:
        self._config, self._plan = config, plan
        self._features = [column for column in plan.columns if column.role == "feature"]
        self._numbers = statistics.numbers
        self._moments, self._num_rows = statistics.moments, statistics.num_rows
        self._samples, self._counts = statistics.samples, statistics.counts

    def fit(self, train: TrainRows, target: Callable[[pl.Series], np.ndarray]) -> FittedTransform:
        """The transform.

        Args:
            train: reads the training rows once more, in order, in batches of any size.
            target: labels to class numbers.
        """
        transform = FittedTransform(features=self._fitted())
        config = self._config.transform
        if config.select.variance is not None or config.select.mutual_information is not None:
            moments, sample, labels = self._outputs(transform, train, target)
            transform = select(transform, moments, sample, labels, config.select)
        if config.components is not None:
            batches = (transform.apply(codes_of(transform, rows)).astype(np.float64) for rows in even_batches(train()))
            transform = extract(transform, batches, config.components)
        return transform

    def split(self, transform: FittedTransform) -> tuple[FittedTransform, FittedTransform]:
        """For retrieval: what is read of a query, and what is read of an item, that itself first."""
        item = self._category(self._plan.target.name, None)
        sides = [
            [one for one in transform.features if (one.name in self._config.items) == its] for its in (False, True)
        ]
        return FittedTransform(features=sides[0]), FittedTransform(features=[item, *sides[1]])

    def _fitted(self) -> list[Feature]:
        scales: dict[str, tuple[FeatureScale, int]] = {}
        if self._moments is not None:
            names = [column.name for column in self._numbers]
            fitted = fit_scales(names, self._moments, self._config.transform)
            scales = {scale.name: (scale, at) for at, scale in enumerate(fitted)}
        return [self._feature(column, scales) for column in self._features]

    def _feature(self, column: Column, scales: dict[str, tuple[FeatureScale, int]]) -> Feature:
        config = self._config.transform
        if column.kind == "category":
            return self._category(column.name, self._category_fill(column))
        scale, at = scales[column.name]
        assert self._moments is not None
        fill = self._number_fill(column, at)
        if column.kind == "date":
            low, high = float(self._moments.low[at]), float(self._moments.high[at])
            return DateParts(name=column.name, parts=config.date_parts, low=low, high=high, fill=fill)
        low, high = (None, None)
        if column.rule.outliers and column.rule.outliers.action == "clip":
            low, high = limits(column, self._moments, at, self._samples.get(column.name))
        return scale.model_copy(update={"fill": fill, "low": low, "high": high})

    def _category(self, name: str, fill: str | None) -> Category | HashedCategory:
        config, as_index = self._config.transform, self._config.task == "retrieval"
        if config.categories == "hashing":
            return HashedCategory(name=name, buckets=config.hash_buckets, fill=fill, as_index=as_index)
        return fit_category(name, self._counts[name], config, fill, as_index=as_index)

    def _number_fill(self, column: Column, at: int) -> float | None:
        assert self._moments is not None
        if column.nulls == "mean":
            return float(self._moments.mean[at])
        if column.nulls == "median":
            return self._samples[column.name].quantile(0.5)
        if column.nulls == "most_frequent":
            return _as_number(column, self._counts[column.name].most_common(1)[0])
        return _as_number(column, column.rule.fill) if column.nulls == "value" else None

    def _category_fill(self, column: Column) -> str | None:
        if column.nulls == "most_frequent":
            return self._counts[column.name].most_common(1)[0]
        return str(column.rule.fill) if column.nulls == "value" else None

    def _outputs(
        self, transform: FittedTransform, train: TrainRows, target: Callable[[pl.Series], np.ndarray]
    ) -> tuple[Moments, np.ndarray, np.ndarray]:
        """Moments of the transform's outputs, some of the outputs, evenly spread, and their class numbers."""
        stride = -(-self._num_rows // SAMPLE_ROWS)
        moments: Moments | None = None
        sample, labels = [], []
        for rows in even_batches(train()):
            outputs = transform.apply(codes_of(transform, rows))
            part = Moments.of(outputs)
            moments = _merged(moments, part)
            sample.append(outputs[::stride])
            labels.append(target(rows[self._plan.target.name])[::stride])
        assert moments is not None
        return moments, np.concatenate(sample), np.concatenate(labels)


def limits(column: Column, moments: Moments, at: int, sample: Sample | None) -> tuple[float, float]:
    """Where a column's values become outliers: below and above."""
    rule = column.rule.outliers
    assert rule is not None
    if rule.method == "zscore":
        mean, deviation = float(moments.mean[at]), float(moments.deviation[at])
        return mean - rule.limit * deviation, mean + rule.limit * deviation
    assert sample is not None
    first, third = sample.quantile(0.25), sample.quantile(0.75)
    return first - rule.limit * (third - first), third + rule.limit * (third - first)


def physical(values: pl.Series) -> np.ndarray:
    """Numbers as they are, dates in microseconds, null as NaN; float64."""
    return values.to_physical().cast(pl.Float64).to_numpy()


def codes_of(transform: FittedTransform, rows: pl.DataFrame) -> np.ndarray:
    """Rows as `FittedTransform.apply` takes them."""
    return transform.rows({name: _plain(rows[name]) for name in transform.columns})


def _plain(values: pl.Series) -> np.ndarray | list[str | None]:
    return values.to_list() if values.dtype == pl.String else values.to_numpy()


def even_batches(frames: Iterator[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """The same rows, `FIT_ROWS` at a time however they came."""
    waiting: pl.DataFrame | None = None
    for frame in frames:
        waiting = frame if waiting is None else pl.concat([waiting, frame])
        while waiting.height >= FIT_ROWS:
            yield waiting.slice(0, FIT_ROWS)
            waiting = waiting.slice(FIT_ROWS)
    if waiting is not None and waiting.height:
        yield waiting


def _merged(moments: Moments | None, more: Moments) -> Moments:
    return moments.merge(more) if moments else more


def _needs_counts(config: PreprocessConfig, column: Column) -> bool:
    if column.nulls == "most_frequent":
        return True
    return column.kind == "category" and config.transform.categories != "hashing"


def _needs_quantiles(column: Column) -> bool:
    by_quartiles = column.rule.outliers is not None and column.rule.outliers.method == "iqr"
    return column.is_number and (column.nulls == "median" or by_quartiles)


def _texts(values: pl.Series) -> list[str]:
    return (values if values.dtype == pl.String else values.to_physical().cast(pl.String)).to_list()


def _as_number(column: Column, value: float | str | None) -> float:
    try:
        if column.kind == "date" and isinstance(value, str) and not value.lstrip("-").isdigit():
            return float(np.datetime64(datetime.fromisoformat(value), "us").astype(np.int64))
        return float(value)  # ty: ignore[invalid-argument-type]  (None raises TypeError)
    except (TypeError, ValueError) as failure:
        raise ConfigError(f"preprocess.columns.{column.name}.fill", f"{value!r} is no {column.kind}") from failure
