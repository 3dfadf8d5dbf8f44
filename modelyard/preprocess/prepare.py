"""The first step of a partition: every row of its files is read once, checked, hashed and written.

It is done as if the partition were alone in the world. What the others mean for it comes later (`revise`), so its
result can be kept, and found again as long as its files are the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import closing
from functools import partial

import numpy as np
import polars as pl

from modelyard.artifacts import Frozen
from modelyard.catalog import Attempt, Catalog, Origin, Product, Work
from modelyard.datasets import SPLITS
from modelyard.preprocess.clean import Cleaned, clean
from modelyard.preprocess.config import EVERY, PreprocessConfig
from modelyard.preprocess.duplicates import LedgerWriter, RecentRows
from modelyard.preprocess.formats import detect
from modelyard.preprocess.partition_files import (
    ROWS_LEDGER,
    UNSPLIT,
    PartitionFiles,
    PlacesWriter,
    unique_ledgers,
)
from modelyard.preprocess.partitions import Partition
from modelyard.preprocess.prefetch import ahead
from modelyard.preprocess.protect import Protector
from modelyard.preprocess.raw_rows import RawBatch
from modelyard.preprocess.rows import row_hashes
from modelyard.preprocess.schema import Plan, check_columns, check_file, make_plan
from modelyard.preprocess.snapshot import Source
from modelyard.preprocess.sources import batches, columns_of, fetched
from modelyard.preprocess.splits import assigner

PLAN_FILE = "plan.json"
# What these say is about the whole data set, and changes nothing in a partition.
ABOUT_THE_WHOLE = {"max_rejected_fraction", "transform", "partition_bytes"}


class Preparation(Frozen):
    """Everything that the result follows from, and ``folder``, where the files lie.

    Attributes:
        plan: None for the partition whose first rows decide it.
        key_fingerprint: of the key that columns are hashed with.
    """

    folder: str
    partition: Partition
    config: PreprocessConfig
    plan: Plan | None
    code_version: str
    key_fingerprint: str | None

    @property
    def work(self) -> Work:
        plan = self.plan and hashlib.sha256(self.plan.model_dump_json().encode()).hexdigest()
        said = self.config.model_dump(mode="json", exclude=ABOUT_THE_WHOLE)
        # Of the transform, what decides which statistics are taken.
        said["categories"] = self.config.transform.categories
        sources = self.partition.model_dump(mode="json")["sources"]
        return Work(
            kind="partition",
            config={"step": "prepare", "preprocess": said},
            inputs={},
            code_version=self.code_version,
            occasion={"sources": sources, "plan": plan, "key": self.key_fingerprint},
        )


def prepare(catalog: Catalog, preparation: Preparation, protector: Protector, origin: Origin) -> Product:
    """Make a partition's files, laid out as `modelyard.preprocess.partition_files` says.

    Raises:
        DataError: a file cannot be read, or does not fit the plan.
    """
    return catalog.produce(preparation.work, partial(_build, preparation, protector), origin)


def _build(preparation: Preparation, protector: Protector, attempt: Attempt) -> None:
    with closing(_Intake(attempt, preparation, protector)) as intake:
        for number, source in enumerate(preparation.partition.sources):
            intake.take(number, source)
        intake.finish()


class _Intake:
    """Takes in the files of a partition, in order of arrival."""

    def __init__(self, attempt: Attempt, preparation: Preparation, protector: Protector) -> None:
        self._attempt, self._config, self._protector = attempt, preparation.config, protector
        self._folder, self._plan = preparation.folder, preparation.plan
        self._is_split = self._config.split.method != "stratified"
        self._files: PartitionFiles | None = None
        self._places = PlacesWriter(attempt)
        self._rows = LedgerWriter(attempt.scratch / "rows-ledger")
        self._recent = RecentRows()
        self._num_kept = 0
        self._num_read = 0
        self._torn: list[pl.DataFrame] = []
        self._unique = {
            name: (file, LedgerWriter(attempt.scratch / f"{file}-parts"))
            for name, file in unique_ledgers(self._config).items()
        }

    def take(self, number: int, source: Source) -> None:
        """Read a file to its end; every row of it is accounted for."""
        with fetched(self._attempt.store, self._folder, source, self._attempt.scratch) as path:
            kind = detect(path, source.name, self._config.read)
            present = columns_of(path, source.name, kind, self._config.read)
            check_columns(self._config, source.name, present)
            # The text of a row that could not be told into columns may hold anything.
            show_torn = not any(rule.sensitive for rule in self._config.columns.values())
            wanted = self._wanted(present)
            for batch in ahead(batches(path, source.name, kind, wanted, self._config.read, show_torn=show_torn)):
                self._add(batch, number, source.name)

    def finish(self) -> None:
        """Every file was read. Where none had a row, and no plan was given, there is nothing but the count."""
        self._places.finish()
        self._attempt.add(ROWS_LEDGER, self._rows.finish())
        for file, ledger in self._unique.values():
            self._attempt.add(file, ledger.finish())
        if self._plan:
            files = self._opened(self._plan)
            files.statistics.num_read = self._num_read
            files.finish()
            self._attempt.add_bytes(PLAN_FILE, self._plan.model_dump_json().encode())
        reasons = self._files.statistics.told_reasons if self._files else []
        self._attempt.facts.update(
            read=self._num_read, kept=self._num_kept, rejected=reasons, has_plan=self._plan is not None
        )

    def close(self) -> None:
        self._places.close()
        if self._files:
            self._files.abandon()

    def _wanted(self, present: Sequence[str]) -> list[str]:
        """Columns of a file that are read at all."""
        dropped = {name for name, rule in self._config.columns.items() if rule.sensitive == "drop"}
        if self._plan is not None:
            return self._plan.names if set(self._plan.names) <= set(present) else list(present)
        named = [*self._config.named, *(name for name in self._config.columns if name in present)]
        chosen = present if self._config.features == EVERY else dict.fromkeys(named)
        return [name for name in chosen if name not in dropped]

    def _add(self, batch: RawBatch, number: int, file: str) -> None:
        self._num_read += batch.num_read
        if batch.torn is not None:
            self._torn.append(batch.torn)
        rows = self._protector.apply(batch.rows)
        if self._plan is None and rows.height:
            self._plan = make_plan(self._config, file, rows)
        if self._plan is None:
            return
        files = self._opened(self._plan)
        while self._torn:
            files.refuse(self._torn.pop(0))
        if rows.height:
            check_file(self._plan, file, rows.schema)
            self._keep(rows, self._plan, batch.numbers, number, file)

    def _keep(self, rows: pl.DataFrame, plan: Plan, numbers: np.ndarray, number: int, file: str) -> None:
        files = self._opened(plan)
        cleaned = clean(rows, plan, file, numbers)
        files.refuse(cleaned.rejected)
        files.statistics.before.add(cleaned.parsed)
        if cleaned.rows.height:
            self._write(files, plan, cleaned, number)

    def _write(self, files: PartitionFiles, plan: Plan, cleaned: Cleaned, number: int) -> None:
        hashes, rows, numbers = row_hashes(cleaned.rows, plan.names), cleaned.rows, cleaned.numbers
        repeated = self._recent.repeated(hashes)
        if repeated.any():
            files.statistics.num_duplicates += int(repeated.sum())
            hashes, rows, numbers = hashes[~repeated], rows.filter(pl.Series(~repeated)), numbers[~repeated]
        self._rows.add(hashes)
        self._take_unique(rows)
        identity = row_hashes(rows, plan.identity) if plan.identity else hashes
        codes = np.zeros(rows.height, dtype=np.int8)
        if self._is_split:
            codes = assigner(self._config.split).assign(rows, identity[:, 0] / 2.0**64)
        self._places.add(codes, number, numbers)
        files.add(rows, codes)
        self._num_kept += rows.height

    def _opened(self, plan: Plan) -> PartitionFiles:
        if self._files is None:
            splits = SPLITS if self._is_split else (UNSPLIT,)
            self._files = PartitionFiles(self._attempt, self._config, plan, splits)
        return self._files

    def _take_unique(self, rows: pl.DataFrame) -> None:
        for name, (_, ledger) in self._unique.items():
            here = np.flatnonzero(rows[name].is_not_null().to_numpy())
            ledger.add(row_hashes(rows[[name]], [name])[here], here + self._num_kept)
