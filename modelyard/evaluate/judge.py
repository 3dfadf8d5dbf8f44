"""One model under judgement: its answers, counted as they come."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from modelyard.errors import ConfigError, DataError
from modelyard.evaluate.grouped import GroupedSums, SumStatistic
from modelyard.evaluate.ranking import Ranking
from modelyard.evaluate.scores import (
    CLASSIFIER_STATISTICS,
    NUM_BINS,
    NUM_ERROR_SUMS,
    Calibration,
    classifier_sums,
    regression_statistics,
    regression_sums,
)
from modelyard.metrics import ClassificationMetrics, negative_log_likelihood
from modelyard.model_package import ModelPackage
from modelyard.targets import encoded_targets
from modelyard.task_kinds import Target, task_kind
from modelyard.token_labels import labels_of


class Judged:
    """A loaded form of a package and the metrics of its answers.

    Args:
        role: ``candidate``, ``float`` or ``champion``; for sentences.
        package: the loaded form, with its own transform.
    """

    def __init__(self, role: str, package: ModelPackage) -> None:
        self.role = role
        self.package = package
        self._metric = task_kind(package.spec.target.task).metric(package.spec.target)
        self._num_rows = self._num_finite = 0
        self.calibration = Calibration()
        num_classes = len(package.spec.target.classes)
        self.ranking = Ranking(num_classes)
        self.sums = GroupedSums(2 + NUM_BINS if self.is_classifier else NUM_ERROR_SUMS)
        self.slices: dict[str, ClassificationMetrics] = defaultdict(lambda: ClassificationMetrics(num_classes))
        self.slice_sums: dict[str, GroupedSums] = defaultdict(lambda: GroupedSums(NUM_ERROR_SUMS))
        self.points: list[tuple[float, float]] = []

    def check_fits(self, target: Target, columns: list[str]) -> None:
        """Make sure that this model answers the question that the data set asks.

        Raises:
            DataError: another target, other classes, or columns that the data set lacks.
        """
        own = self.package.spec.target
        if own.question != target.question:
            raise DataError(
                f"the {self.role} cannot be judged on this data set: it predicts {_described(own)}, the data set has"
                f" {_described(target)}; give the new task an endpoint of its own, or let a person override the verdict"
            )
        missing = sorted(set(self.package.transform.columns) - set(columns))
        if missing:
            raise DataError(
                f"the {self.role} cannot be judged on this data set: it takes columns that the set lacks:"
                f" {', '.join(missing[:8])}"
            )

    def targets(self, frame: pd.DataFrame) -> np.ndarray:
        """The frame's targets (n,), encoded as this model was trained on them."""
        return encoded_targets(self.package.transform, self.package.spec.target, frame)

    def count(self, frame: pd.DataFrame, groups: Sequence[np.ndarray] = ()) -> np.ndarray:
        """Answer rows and compare with their targets.

        Args:
            groups: for each column of slices the name of every row's slice, (n,).

        Returns:
            The raw outputs, (n, k).
        """
        targets = self.targets(frame)
        rows = self.package.transform.rows(frame)
        outputs = self.package.outputs(rows)
        self._num_rows += len(rows)
        self._num_finite += int(np.isfinite(outputs).all(axis=1).sum())
        self._metric.update(outputs, targets)
        self.sums.add((classifier_sums if self.is_classifier else regression_sums)(outputs, targets))
        if self.is_classifier:
            self.calibration.update(outputs, targets)
            self.ranking.update(outputs, targets)
        for names in groups:
            self._count_slices(names, outputs, targets)
        return outputs

    def _count_slices(self, names: np.ndarray, outputs: np.ndarray, targets: np.ndarray) -> None:
        for name in np.unique(names.astype(str)):
            mine = names == name
            if self.is_classifier:
                self.slices[name].update(outputs[mine], targets[mine])
            else:
                self.slice_sums[name].add(regression_sums(outputs[mine], targets[mine]))

    @property
    def is_classifier(self) -> bool:
        return self.package.spec.target.task == "classification"

    @property
    def confusion(self) -> np.ndarray:
        """(k, k) counts, row: truth."""
        assert isinstance(self._metric, ClassificationMetrics)
        return self._metric.confusion

    @property
    def finite_fraction(self) -> float:
        """Rows whose outputs are all numbers."""
        return self._num_finite / max(self._num_rows, 1)

    def headline(self) -> dict[str, float]:
        """The named metrics, without any that is no finite number (JSON has no NaN)."""
        found = self._metric.compute()
        if self.is_classifier:
            found |= {"roc_auc": self.ranking.area, "calibration_error": self.calibration.error}
        return {name: value for name, value in found.items() if np.isfinite(value)}

    @property
    def score_names(self) -> list[str]:
        """Scores that a bound may look at, computed or not."""
        return [*self._metric.compute(), *(("roc_auc", "calibration_error") if self.is_classifier else ())]

    def score_of(self, inputs: np.ndarray, targets: np.ndarray, metric: str) -> float:
        """One metric of the answers to network input (n, width); nothing is counted."""
        fresh = task_kind(self.package.spec.target.task).metric(self.package.spec.target)
        fresh.update(self.package.run(inputs), targets)
        return fresh.compute()[metric]

    @property
    def statistics(self) -> dict[str, SumStatistic]:
        """Scores that are functions of `sums`, by name."""
        return CLASSIFIER_STATISTICS if self.is_classifier else regression_statistics(self.package.spec.target.scale)

    def distances(self, outputs: np.ndarray, frame: pd.DataFrame) -> np.ndarray:
        """How far a regression's raw outputs (n, 1) lie from the frame's targets, in the target's own units, (n,)."""
        gaps = outputs.astype(np.float64).reshape(-1) - self.targets(frame)
        return np.abs(gaps) * self.package.spec.target.scale

    def remember(self, outputs: np.ndarray, frame: pd.DataFrame) -> None:
        """Keep a regression's truth and answer of some rows, in the target's own units, for a drawing."""
        target = self.package.spec.target
        found = np.column_stack([self.targets(frame), outputs.astype(np.float64).reshape(-1)])
        kept = found[np.isfinite(found).all(axis=1)] * target.scale + target.mean
        self.points += [(round(truth, 6), round(answer, 6)) for truth, answer in kept.tolist()]

    def losses(self, inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """The loss of each answer to network input (n, width): in nats, or squared errors in the network's units, (n,)."""
        outputs = self.package.run(inputs)
        if self.is_classifier:
            return negative_log_likelihood(outputs, targets)
        return (outputs.astype(np.float64).reshape(-1) - targets) ** 2

    def value(self, metric: str) -> float:
        """One metric.

        Raises:
            ConfigError: the task has no such metric; lists those it has.
        """
        found = self._metric.compute()
        if metric not in found:
            task = self.package.spec.target.task
            raise ConfigError("evaluate.metric", f"{task} has no {metric}; it has {', '.join(found)}")
        return found[metric]

    def details(self) -> dict[str, Any]:
        """Headline metrics; for a regression the truth and answer of some rows; for a classifier also the classes, per class what `ClassificationMetrics.per_class` gives
        (in the classes' order) and the confusion matrix (row: truth)."""
        found: dict[str, Any] = {**self.headline(), "rows": self._num_rows}
        if self.points:
            found["points"] = self.points
        if isinstance(self._metric, ClassificationMetrics):
            found["calibration"] = self.calibration.curve()
            found["classes"] = self.package.spec.target.classes
            found["per_class"] = {name: values.tolist() for name, values in self._metric.per_class().items()}
            found["confusion"] = self._metric.confusion.tolist()
        return found


def _described(target: Target) -> str:
    if target.task == "embedding":
        return f"vectors of texts that belong to {target.column!r}"
    if target.task == "retrieval":
        return f"which {target.column!r} belongs to a query"
    if target.task == "token_classification":
        return f"{target.column!r} as spans ({', '.join(labels_of(target.classes)[:5])})"
    if target.task == "regression":
        return f"{target.column!r} as a number"
    shown = ", ".join(map(str, target.classes[:5])) + (", ..." if len(target.classes) > 5 else "")
    return f"{target.column!r} as one of {len(target.classes)} classes ({shown})"
