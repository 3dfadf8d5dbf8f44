"""Rows of a data set as a model's own transform makes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Catalog
from modelyard.datasets import TRANSFORM_FILE, Dataset, Split
from modelyard.errors import DataError
from modelyard.targets import encoded_targets, joined_targets
from modelyard.task_kinds import Target
from modelyard.transform import RowTransform, joined, read_row_transform

# What techniques may ask for, at most.
CALIBRATION_ROWS = 10_000


class Rows:
    """Network input of a data set's splits."""

    def __init__(self, dataset: Dataset, transform: RowTransform) -> None:
        missing = sorted(set(transform.columns) - set(dataset.transform.columns))
        if missing:
            raise DataError(f"the data set lacks columns that the model takes: {', '.join(missing[:8])}")
        self._dataset, self._transform = dataset, transform

    @classmethod
    def fetch(
        cls, catalog: Catalog, dataset: ArtifactRef, model: ArtifactRef, folder: Path, splits: Sequence[Split]
    ) -> Rows:
        """Download the named splits, to be read as a trained model reads them."""
        transform = read_row_transform(catalog.read(model, TRANSFORM_FILE))
        return cls(Dataset.fetch(catalog, dataset, folder, splits), transform)

    @property
    def target(self) -> Target:
        return self._dataset.target

    def batches(self) -> Iterator[np.ndarray]:
        """The validation split."""
        for frame in self._dataset.frames("validation"):
            yield self._transform.apply_frame(frame)

    def all(self, split: Split) -> tuple[np.ndarray, np.ndarray]:
        """A whole split: network input (n, width) float32, or tokens (n, t) int64, and encoded targets; zeros where vectors
        have none.

        Raises:
            DataError: the split is empty.
        """
        parts = [(self._transform.apply_frame(frame), self._targets(frame)) for frame in self._dataset.frames(split)]
        if not parts:
            raise DataError(f"the {split} split is empty: nothing to judge candidates by")
        features, targets = zip(*parts, strict=True)
        return joined(features), joined_targets(targets)

    def _targets(self, frame: pd.DataFrame) -> np.ndarray:
        if self.target.task == "embedding":
            return np.zeros(len(frame), dtype=np.float32)
        return encoded_targets(self._transform, self.target, frame)

    def some(self, split: Split, num_rows: int) -> np.ndarray:
        """At most that many rows (n, width) of a split, spread evenly: it may be sorted.

        Raises:
            DataError: the split is empty.
        """
        return joined([self._transform.apply_frame(frame) for frame in self._spread(split, num_rows)])

    def some_labelled(self, split: Split, num_rows: int) -> tuple[np.ndarray, np.ndarray]:
        """The same with their encoded targets (n,), or tags of tokens (n, t).

        Raises:
            DataError: the split is empty.
        """
        frames = list(self._spread(split, num_rows))
        features = [self._transform.apply_frame(frame) for frame in frames]
        return joined(features), joined_targets(
            [encoded_targets(self._transform, self.target, frame) for frame in frames]
        )

    def _spread(self, split: Split, num_rows: int) -> Iterator[pd.DataFrame]:
        available = self._dataset.num_rows(split)
        if not available:
            raise DataError(
                f"the {'training' if split == 'train' else split} split is empty: nothing to calibrate with"
            )
        chosen = np.unique(np.linspace(0, available - 1, min(num_rows, available)).astype(np.int64))
        position = 0
        for frame in self._dataset.frames(split):
            here = chosen[(chosen >= position) & (chosen < position + len(frame))] - position
            position += len(frame)
            yield frame.iloc[here]

    def calibration(self, num_rows: int) -> np.ndarray:
        """Rows of the training split."""
        return self.some("train", num_rows)
