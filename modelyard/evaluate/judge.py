"""One model under judgement: its answers, counted as they come."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from modelyard.errors import DataError
from modelyard.metrics import ClassificationMetrics
from modelyard.model_package import ModelPackage
from modelyard.task_kinds import Target, task_kind


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

    def check_fits(self, target: Target, columns: list[str]) -> None:
        """Make sure that this model answers the question that the data set asks.

        Raises:
            DataError: another target, other classes, or columns that the data set lacks.
        """
        own = self.package.spec.target
        if own != target:
            raise DataError(
                f"the {self.role} cannot be judged on this data set: it predicts {_described(own)}, the data set has"
                f" {_described(target)}; give the new task an endpoint of its own, or evaluate without a champion"
            )
        missing = sorted(set(self.package.transform.columns) - set(columns))
        if missing:
            raise DataError(
                f"the {self.role} cannot be judged on this data set: it takes columns that the set lacks:"
                f" {', '.join(missing[:8])}"
            )

    def count(self, frame: pd.DataFrame, targets: np.ndarray) -> None:
        """Answer rows and compare with their encoded targets (n,)."""
        rows = self.package.transform.rows(frame)
        outputs = self.package.outputs(rows)
        self._num_rows += len(rows)
        self._num_finite += int(np.isfinite(outputs).all(axis=1).sum())
        self._metric.update(outputs, targets)

    @property
    def finite_fraction(self) -> float:
        """Rows whose outputs are all numbers."""
        return self._num_finite / max(self._num_rows, 1)

    def headline(self) -> dict[str, float]:
        """The named metrics, without any that is no finite number (JSON has no NaN)."""
        return {name: value for name, value in self._metric.compute().items() if np.isfinite(value)}

    def value(self, metric: str) -> float:
        return self._metric.compute()[metric]

    def details(self) -> dict[str, Any]:
        """Headline metrics; for a classifier also the classes, per class what `ClassificationMetrics.per_class` gives
        (in the classes' order) and the confusion matrix (row: truth)."""
        found: dict[str, Any] = {**self.headline(), "rows": self._num_rows}
        if isinstance(self._metric, ClassificationMetrics):
            found["classes"] = self.package.spec.target.classes
            found["per_class"] = {name: values.tolist() for name, values in self._metric.per_class().items()}
            found["confusion"] = self._metric.confusion.tolist()
        return found


def _described(target: Target) -> str:
    shown = ", ".join(map(str, target.classes[:5])) + (", ..." if len(target.classes) > 5 else "")
    return f"{target.column!r} as one of {len(target.classes)} classes ({shown})"
