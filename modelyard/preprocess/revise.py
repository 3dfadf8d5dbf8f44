"""The second step of a partition, where the others change it: rows that go, and splits that follow from what stands before.

What it does follows from the partition and from a `Revision` alone, so the result is kept and found again too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from pyarrow import parquet

from modelyard.artifacts import ArtifactRef, Frozen
from modelyard.catalog import Attempt, Catalog, Origin, Product, Work
from modelyard.datasets import SPLITS
from modelyard.preprocess.clean import rejection
from modelyard.preprocess.config import PreprocessConfig
from modelyard.preprocess.partition_files import PLACES_FILE, UNSPLIT, PartitionFiles, PlacesWriter
from modelyard.preprocess.partitions import Partition
from modelyard.preprocess.schema import Plan
from modelyard.preprocess.splits import Stratified
from modelyard.preprocess.statistics import STATISTICS_FILE, unpack

NO_ROWS = np.empty(0, dtype=np.uint32)


@dataclass(frozen=True, kw_only=True)
class Revision:
    """What the whole data set means for one partition. Positions are those of its kept rows, ascending, uint32.

    Attributes:
        repeated: rows that an earlier one equals, or nearly.
        taken: column -> rows whose value there occurred before.
        starts: label -> rows of it in the partitions before, for a stratified split; None for the others.
        limits: column -> values outside are outliers, and refused.
    """

    repeated: np.ndarray = field(default_factory=lambda: NO_ROWS)
    taken: Mapping[str, np.ndarray] = field(default_factory=dict)
    starts: Mapping[Any, int] | None = None
    limits: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def changes_nothing(self) -> bool:
        gone = len(self.repeated) or any(map(len, self.taken.values()))
        return not gone and self.starts is None and not self.limits

    @property
    def digest(self) -> str:
        told = {
            "repeated": _digest(self.repeated),
            "taken": {name: _digest(rows) for name, rows in sorted(self.taken.items())},
            "starts": sorted(self.starts.items(), key=str) if self.starts is not None else None,
            "limits": sorted(self.limits.items()),
        }
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()


class Revising(Frozen):
    """A partition as it was made, and what else its new form follows from."""

    ref: ArtifactRef
    partition: Partition
    config: PreprocessConfig
    plan: Plan
    code_version: str

    def work(self, revision: Revision) -> Work:
        said = {"split": self.config.split.model_dump(mode="json"), "shard_rows": self.config.shard_rows}
        said["categories"] = self.config.transform.categories
        return Work(
            kind="partition",
            config={"step": "revise", "preprocess": said},
            inputs={"partition": self.ref},
            code_version=self.code_version,
            occasion={"revision": revision.digest},
        )


def revise(catalog: Catalog, revising: Revising, revision: Revision, origin: Origin) -> Product:
    """The partition's files once more, without the rows that go, and in their splits."""
    return catalog.produce(revising.work(revision), partial(_build, catalog, revising, revision), origin)


def _build(catalog: Catalog, revising: Revising, revision: Revision, attempt: Attempt) -> None:
    before = attempt.scratch / "before"
    manifest = catalog.manifest(revising.ref)
    shards = [name for name in manifest.content.files if name.partition("/")[0] in (*SPLITS, UNSPLIT)]
    catalog.fetch(revising.ref, before, [*shards, PLACES_FILE, STATISTICS_FILE])
    _Revision(attempt, revising, revision, before).write()


class _Revision:
    def __init__(self, attempt: Attempt, revising: Revising, revision: Revision, before: Path) -> None:
        self._attempt, self._revising, self._revision, self._before = attempt, revising, revision, before
        self._files = PartitionFiles(attempt, revising.config, revising.plan, SPLITS)
        self._files.statistics.merge_read(unpack((before / STATISTICS_FILE).read_bytes()))
        self._names = [source.name for source in revising.partition.sources]
        self._is_split = not (before / UNSPLIT).exists()
        self._places = PlacesWriter(attempt)

    def write(self) -> None:
        try:
            stratified = Stratified(self._revising.config.split, self._revising.plan, self._revision.starts or {})
            for number, split in enumerate(SPLITS if self._is_split else (UNSPLIT,)):
                for rows, places in self._shards(split, number):
                    kept, stay = self._without_gone(rows, places)
                    codes = np.full(kept.height, number, dtype=np.int8) if self._is_split else stratified.assign(kept)
                    self._add(kept, stay, codes)
            self._places.finish()
            self._files.finish()
        finally:
            self._places.close()
            self._files.abandon()

    def _shards(self, split: str, number: int) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
        """Rows of a split, and the place of each: its position, file and number there."""
        places = _Places(self._before / PLACES_FILE, number)
        for path in sorted((self._before / split).glob("*.parquet")):
            rows = pl.DataFrame(pl.from_arrow(parquet.read_table(path)))
            yield rows, places.take(rows.height)

    def _without_gone(self, rows: pl.DataFrame, places: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        positions = places["position"].to_numpy()
        gone = _among(positions, self._revision.repeated)
        self._files.statistics.num_duplicates += int(gone.sum())
        for name, taken in self._revision.taken.items():
            clash = _among(positions, taken) & ~gone
            self._refuse(rows, places, clash, name, "not unique")
            gone |= clash
        for name, (low, high) in self._revision.limits.items():
            values = rows[name].to_numpy()
            far = ((values < low) | (values > high)) & ~gone
            self._refuse(rows, places, far, name, "outlier")
            gone |= far
        stay = pl.Series(~gone)
        return rows.filter(stay), places.filter(stay)

    def _refuse(self, rows: pl.DataFrame, places: pl.DataFrame, which: np.ndarray, column: str, reason: str) -> None:
        refused = places.filter(pl.Series(which))
        shown = rows[column].filter(pl.Series(which))
        for (file,), part in refused.with_columns(shown.alias("value")).group_by("file", maintain_order=True):
            numbers = part["number"].to_numpy()
            self._files.refuse(rejection(self._names[int(str(file))], numbers, column, reason, part["value"]))

    def _add(self, rows: pl.DataFrame, places: pl.DataFrame, codes: np.ndarray) -> None:
        self._files.add(rows, codes)
        self._places.add(codes, places["file"].to_numpy(), places["number"].to_numpy())


class _Places:
    """The places of one split's rows, in order, as many at a time as are wanted."""

    def __init__(self, path: Path, split: int) -> None:
        self._batches = parquet.ParquetFile(path).iter_batches()
        self._split, self._first = split, 0
        self._waiting = pl.DataFrame(
            schema={"split": pl.Int8, "file": pl.Int32, "number": pl.Int64, "position": pl.UInt32}
        )

    def take(self, count: int) -> pl.DataFrame:
        while self._waiting.height < count:
            batch = pl.DataFrame(pl.from_arrow(next(self._batches)))
            batch = batch.with_row_index("position", self._first).select(self._waiting.columns)
            self._first += batch.height
            self._waiting = pl.concat([self._waiting, batch.filter(pl.col("split") == self._split)])
        taken, self._waiting = self._waiting.slice(0, count), self._waiting.slice(count)
        return taken


def _among(positions: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Mask (n,) of the positions that are among the chosen ones, which ascend."""
    if not len(chosen):
        return np.zeros(len(positions), dtype=bool)
    where = np.minimum(np.searchsorted(chosen, positions), len(chosen) - 1)
    return chosen[where] == positions


def _digest(positions: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(positions, dtype="<u4").tobytes()).hexdigest()
