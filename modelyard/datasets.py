"""Reading a preprocessed data set: the leaf that training, compression and evaluation share.

train/ validation/ test/   Parquet shards of clean, untransformed rows
rejected/                  the rows that were refused, each with its reason
transform.json             fitted on the training split
target.json                the fitted target schema
schema.yaml                what each column was taken for, as a preset's `preprocess` says it: to copy and edit
partitions.json            which files of the user's were processed together, and the digest of what came of them
report.json                what went in, what came out, and why the rest did not
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Catalog
from modelyard.errors import DataError
from modelyard.targets import encoded_targets, joined_targets
from modelyard.task_kinds import Target, refuse_language_models
from modelyard.transform import joined, read_row_transform

if TYPE_CHECKING:
    import pandas as pd

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
TRANSFORM_FILE = "transform.json"
TARGET_FILE = "target.json"
REPORT_FILE = "report.json"
SCHEMA_FILE = "schema.yaml"
PARTITIONS_FILE = "partitions.json"
BATCH_ROWS = 8192
SHARDS_AT_A_TIME = 8


class Dataset:
    """Some splits of a data set artifact, fetched to a local folder and verified."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.target = Target.model_validate_json((folder / TARGET_FILE).read_bytes())
        if self.target.task == "language_modelling":  # masked ones read texts as other networks do
            refuse_language_models("what reads rows of a table", self.target)
        self.transform = read_row_transform((folder / TRANSFORM_FILE).read_bytes())

    @classmethod
    def fetch(cls, catalog: Catalog, ref: ArtifactRef, folder: Path, splits: Sequence[Split]) -> Dataset:
        """Download the named splits and what is needed to read them."""
        manifest = catalog.manifest(ref)
        shards = [name for name in manifest.content.files if name.partition("/")[0] in splits]
        catalog.fetch(ref, folder, [*shards, TRANSFORM_FILE, TARGET_FILE])
        return cls(folder)

    def frames(self, split: Split, batch_rows: int = BATCH_ROWS) -> Iterator[pd.DataFrame]:
        """Clean rows in their stored order, at most ``batch_rows`` at a time."""
        yield from _frames(sorted((self._folder / split).glob("*.parquet")), batch_rows)

    def fetched_frames(
        self, catalog: Catalog, ref: ArtifactRef, split: Split, batch_rows: int = BATCH_ROWS
    ) -> Iterator[pd.DataFrame]:
        """The same of splits that were not fetched: a few shards lie here at a time, each verified."""
        manifest = catalog.manifest(ref)
        shards = sorted(name for name in manifest.content.files if name.startswith(f"{split}/"))
        for first in range(0, len(shards), SHARDS_AT_A_TIME):
            with tempfile.TemporaryDirectory(prefix="modelyard-shards-") as scratch:
                catalog.fetch(ref, Path(scratch), shards[first : first + SHARDS_AT_A_TIME], manifest)
                yield from _frames(sorted(Path(scratch).glob("*/*.parquet")), batch_rows)

    def num_rows(self, split: Split) -> int:
        """Rows of a split, from the shards' footers."""
        from pyarrow import parquet

        return sum(parquet.read_metadata(shard).num_rows for shard in (self._folder / split).glob("*.parquet"))

    def batches(self, split: Split, batch_rows: int = BATCH_ROWS) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Feature rows (n, number of columns) float64, or of tokens (n, t) int64, ready for the transform's `apply`; and
        encoded targets (n,)."""
        for frame in self.frames(split, batch_rows):
            rows = self.transform.rows(frame)
            yield rows, encoded_targets(self.transform, self.target, frame)

    def load(self, split: Split) -> tuple[np.ndarray, np.ndarray]:
        """A whole split in memory: network input (n, width) float32, or tokens (n, t) int64, and encoded targets.

        Raises:
            DataError: the split is empty.
        """
        parts = [(self.transform.apply(rows), targets) for rows, targets in self.batches(split)]
        if not parts:
            raise DataError(f"the {split} split is empty")
        features, targets = zip(*parts, strict=True)
        return joined(features), joined_targets(targets)


def _frames(shards: Sequence[Path], batch_rows: int) -> Iterator[pd.DataFrame]:
    # pandas and Arrow: half a second that readers of tokens, and of rows that lie prepared on the disk, do without
    from pyarrow import parquet

    for shard in shards:
        for batch in parquet.ParquetFile(shard).iter_batches(batch_rows):
            yield batch.to_pandas()
