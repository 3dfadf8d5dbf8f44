"""The first step of a partition: every row of its files is read once, checked, hashed and written.

It is done as if the partition were alone in the world. What the others mean for it comes later (`revise`), so its
result can be kept, and found again as long as its files are the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from modelyard.artifacts import ArtifactRef, Frozen
from modelyard.catalog import Attempt, Catalog, Origin, Product, Work
from modelyard.datasets import SPLITS, TRANSFORM_FILE
from modelyard.preprocess.checking import Checker
from modelyard.preprocess.config import EVERY, PreprocessConfig
from modelyard.preprocess.duplicates import LedgerWriter, RecentRows
from modelyard.preprocess.formats import detect, format_by_name
from modelyard.preprocess.image_rows import image_columns
from modelyard.preprocess.loose_images import loose_images
from modelyard.preprocess.near import SIGNATURES_FILE, SignatureWriter
from modelyard.preprocess.partition_files import (
    ROWS_LEDGER,
    UNSPLIT,
    PartitionFiles,
    PlacesWriter,
    add_ledger,
    unique_ledgers,
)
from modelyard.preprocess.partitions import Partition
from modelyard.preprocess.prefetch import ahead
from modelyard.preprocess.protect import Protector
from modelyard.preprocess.raw_rows import RawBatch
from modelyard.preprocess.rows import row_hashes
from modelyard.preprocess.schema import Plan, check_columns
from modelyard.preprocess.snapshot import Source
from modelyard.preprocess.sources import batches, columns_of, fetched
from modelyard.preprocess.splits import assigner
from modelyard.transform import TextTransform

PLAN_FILE = "plan.json"
PARALLEL_UPLOADS = 2
# What these say is about the whole data set or about who works, and changes nothing in a partition.
ABOUT_THE_WHOLE = {"max_rejected_fraction", "transform", "partition_bytes", "workers"}


class Preparation(Frozen):
    """Everything that the result follows from, and ``folder``, where the files lie.

    Attributes:
        plan: None for the partition whose first rows decide it.
        key_fingerprint: of the key that columns are hashed with.
        reader: where spans of a text are checked by its tokens: the artifact that holds the text's transform.
    """

    folder: str
    partition: Partition
    config: PreprocessConfig
    plan: Plan | None
    code_version: str
    key_fingerprint: str | None
    reader: ArtifactRef | None = None

    @property
    def images(self) -> set[str]:
        """Names of the files that are one image each, as far as their names say."""
        said = self.config.read.format
        names = [source.name for source in self.partition.sources]
        return {name for name in names if (said or format_by_name(name)) == "image"}

    @property
    def work(self) -> Work:
        plan = self.plan and hashlib.sha256(self.plan.model_dump_json().encode()).hexdigest()
        said = self.config.model_dump(mode="json", exclude=ABOUT_THE_WHOLE)
        # Of the transform, what decides which statistics are taken.
        said["label"].pop("suspects")  # about the whole, too
        said["categories"] = self.config.transform.categories
        if said["near_duplicates"]:  # only the signatures are the partition's
            del said["near_duplicates"]["threshold"], said["near_duplicates"]["action"]
        files = self.partition.model_dump(mode="json")
        return Work(
            kind="partition",
            config={"step": "prepare", "preprocess": said},
            inputs={"reader": self.reader} if self.reader else {},
            code_version=self.code_version,
            occasion={"files": files, "plan": plan, "key": self.key_fingerprint},
        )


def prepare(catalog: Catalog, preparation: Preparation, protector: Protector, origin: Origin) -> Product:
    """Make a partition's files, laid out as `modelyard.preprocess.partition_files` says.

    Raises:
        DataError: a file cannot be read, or does not fit the plan.
    """
    reader = read_text_transform(catalog, preparation.reader) if preparation.reader else None
    return catalog.produce(preparation.work, partial(_build, preparation, protector, reader), origin)


def _build(preparation: Preparation, protector: Protector, reader: TextTransform | None, attempt: Attempt) -> None:
    with closing(_Intake(attempt, preparation, protector, reader)) as intake:
        for run in _runs(preparation):
            if run[0][1].name in preparation.images:
                intake.take_images(run)
            else:
                intake.take(*run[0])
        intake.finish()


def read_text_transform(catalog: Catalog, ref: ArtifactRef) -> TextTransform:
    """The reader of texts that `modelyard.preprocess.texts.kept` keeps."""
    return TextTransform.model_validate_json(catalog.read(ref, TRANSFORM_FILE))


def _runs(preparation: Preparation) -> list[list[tuple[int, Source]]]:
    """Files with their numbers; neighbours that are one image each come together, the others alone."""
    runs: list[list[tuple[int, Source]]] = []
    for number, source in enumerate(preparation.partition.sources):
        if runs and {source.name, runs[-1][-1][1].name} <= preparation.images:
            runs[-1].append((number, source))
        else:
            runs.append([(number, source)])
    return runs


class _Intake:
    """Takes in the files of a partition, in order of arrival."""

    def __init__(
        self, attempt: Attempt, preparation: Preparation, protector: Protector, reader: TextTransform | None
    ) -> None:
        self._attempt, self._config = attempt, preparation.config
        self._folder, self._companions = preparation.folder, preparation.partition.companions
        names = [source.name for source in preparation.partition.sources]
        self._checker = Checker(self._config, protector, names, preparation.plan, reader)
        self._is_split = self._config.split.method != "stratified"
        self._files: PartitionFiles | None = None
        self._places = PlacesWriter(attempt)
        self._rows = LedgerWriter(attempt.scratch / "rows-ledger")
        near, path = self._config.near_duplicates, attempt.scratch / SIGNATURES_FILE
        self._signatures = SignatureWriter(path, near) if near else None
        self._recent = RecentRows()
        self._num_kept = 0
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
            wanted, read = self._wanted(present), self._config.read
            with self._labels(source) as labels:
                raw = batches(path, source.name, kind, wanted, read, labels=labels, show_torn=show_torn)
                self._take_all(raw, number, source.name)

    def take_images(self, sources: Sequence[tuple[int, Source]]) -> None:
        """Read files that are one image each."""
        config, name = self._config, sources[0][1].name
        present = image_columns(config.read)
        check_columns(config, name, present)
        raw = loose_images(self._attempt.store, self._folder, sources, self._wanted(present), config.read)
        self._take_all(raw, 0, name)

    def _take_all(self, raw: Iterator[RawBatch], number: int, file: str) -> None:
        """One batch is read while the one before is checked and the one before that is written."""
        for batch in ahead(self._checker.checked(ahead(raw), number, file)):
            files = self._opened(batch.plan)
            for lines in batch.refused:
                files.refuse(lines)
            if batch.rows is not None:
                self._write(files, batch.plan, batch.rows, batch.places)

    @contextmanager
    def _labels(self, source: Source) -> Generator[Path | None]:
        companion = self._companions.get(source.name)
        if companion is None:
            yield None
            return
        with fetched(self._attempt.store, self._folder, companion, self._attempt.scratch) as path:
            yield path

    def finish(self) -> None:
        """Every file was read. Where none had a row, and no plan was given, there is nothing but the count."""
        plan, attempt = self._checker.plan, self._attempt
        with ThreadPoolExecutor(PARALLEL_UPLOADS) as pool:  # beside the last shards
            ledgers = {ROWS_LEDGER: self._rows, **dict(self._unique.values())}
            ended = [pool.submit(self._places.finish)]
            ended += [pool.submit(add_ledger, attempt, name, ledger) for name, ledger in ledgers.items()]
            if self._signatures:
                ended.append(pool.submit(attempt.add, SIGNATURES_FILE, self._signatures.finish()))
            if plan:
                files = self._opened(plan)
                files.statistics.take_read(self._checker.num_read, self._checker.before, self._checker.votes)
                files.finish()
                attempt.add_bytes(PLAN_FILE, plan.model_dump_json().encode())
            for one in ended:
                one.result()
        reasons = self._files.statistics.told_reasons if self._files else []
        attempt.facts.update(
            read=self._checker.num_read, kept=self._num_kept, rejected=reasons, has_plan=plan is not None
        )

    def close(self) -> None:
        self._places.close()
        if self._signatures:
            self._signatures.close()
        if self._files:
            self._files.abandon()

    def _wanted(self, present: Sequence[str]) -> list[str]:
        """Columns of a file that are read at all."""
        dropped = {name for name, rule in self._config.columns.items() if rule.sensitive == "drop"}
        if self._config.makes_columns:  # of what, only the user's code knows
            return [name for name in present if name not in dropped]
        if plan := self._checker.plan:
            return plan.names if set(plan.names) <= set(present) else list(present)
        named = [*self._config.named, *(name for name in self._config.columns if name in present)]
        chosen = present if self._config.features == EVERY else dict.fromkeys(named)
        return [name for name in chosen if name not in dropped]

    def _write(self, files: PartitionFiles, plan: Plan, rows: pl.DataFrame, places: np.ndarray) -> None:
        hashes = row_hashes(rows, plan.names)
        repeated = self._recent.repeated(hashes)
        if repeated.any():
            files.statistics.num_duplicates += int(repeated.sum())
            hashes, rows, places = hashes[~repeated], rows.filter(pl.Series(~repeated)), places[~repeated]
        self._rows.add(hashes)
        if self._signatures:
            self._signatures.add(rows)
        self._take_unique(rows)
        identity = row_hashes(rows, plan.identity) if plan.identity else hashes
        codes = np.zeros(rows.height, dtype=np.int8)
        if self._is_split:
            codes = assigner(self._config.split).assign(rows, identity[:, 0] / 2.0**64)
        self._places.add(codes, places[:, 0], places[:, 1])
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
