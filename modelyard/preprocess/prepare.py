"""The first step of a partition: every row of its files is read once, checked, hashed and written.

It is done as if the partition were alone in the world. What the others mean for it comes later (`revise`), so its
result can be kept, and found again as long as its files are the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from modelyard.artifacts import ArtifactRef, Frozen
from modelyard.catalog import Attempt, Catalog, Origin, Product, Work
from modelyard.datasets import SPLITS, TRANSFORM_FILE
from modelyard.preprocess.clean import clean, rejection
from modelyard.preprocess.config import EVERY, PreprocessConfig
from modelyard.preprocess.duplicates import LedgerWriter, RecentRows
from modelyard.preprocess.formats import detect, format_by_name
from modelyard.preprocess.image_rows import image_columns
from modelyard.preprocess.labels import Votes, labelled
from modelyard.preprocess.loose_images import loose_images
from modelyard.preprocess.near import SIGNATURES_FILE, SignatureWriter
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
from modelyard.preprocess.spans import aligned, written
from modelyard.preprocess.splits import assigner
from modelyard.preprocess.steps import apply_step
from modelyard.transform import TextTransform

PLAN_FILE = "plan.json"
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
        self._attempt, self._config, self._protector = attempt, preparation.config, protector
        self._reader = reader
        self._folder, self._plan = preparation.folder, preparation.plan
        self._companions = preparation.partition.companions
        self._names = [source.name for source in preparation.partition.sources]
        self._is_split = self._config.split.method != "stratified"
        self._files: PartitionFiles | None = None
        self._places = PlacesWriter(attempt)
        self._rows = LedgerWriter(attempt.scratch / "rows-ledger")
        near, path = self._config.near_duplicates, attempt.scratch / SIGNATURES_FILE
        self._signatures = SignatureWriter(path, near) if near else None
        self._recent = RecentRows()
        self._num_kept = 0
        self._num_read = 0
        self._torn: list[pl.DataFrame] = []
        self._votes = Votes()
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
                for batch in ahead(raw):
                    self._add(batch, number, source.name)

    def take_images(self, sources: Sequence[tuple[int, Source]]) -> None:
        """Read files that are one image each."""
        config, name = self._config, sources[0][1].name
        present = image_columns(config.read)
        check_columns(config, name, present)
        for batch in ahead(
            loose_images(self._attempt.store, self._folder, sources, self._wanted(present), config.read)
        ):
            self._add(batch, 0, name)

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
        self._places.finish()
        self._attempt.add(ROWS_LEDGER, self._rows.finish())
        if self._signatures:
            self._attempt.add(SIGNATURES_FILE, self._signatures.finish())
        for file, ledger in self._unique.values():
            self._attempt.add(file, ledger.finish())
        if self._plan:
            files = self._opened(self._plan)
            files.statistics.num_read, files.statistics.votes = self._num_read, self._votes
            files.finish()
            self._attempt.add_bytes(PLAN_FILE, self._plan.model_dump_json().encode())
        reasons = self._files.statistics.told_reasons if self._files else []
        self._attempt.facts.update(
            read=self._num_read, kept=self._num_kept, rejected=reasons, has_plan=self._plan is not None
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
        if self._plan is not None:
            return self._plan.names if set(self._plan.names) <= set(present) else list(present)
        named = [*self._config.named, *(name for name in self._config.columns if name in present)]
        chosen = present if self._config.features == EVERY else dict.fromkeys(named)
        return [name for name in chosen if name not in dropped]

    def _add(self, batch: RawBatch, number: int, file: str) -> None:
        self._num_read += batch.num_read
        if batch.torn is not None:
            self._torn.append(batch.torn)
        files_of = batch.files if batch.files is not None and len(batch.files) else np.full(len(batch.numbers), number)
        places = np.column_stack([files_of, batch.numbers])
        rows, places = self._by_user(self._protector.apply(batch.rows), places, file)
        if self._plan is None and rows.height:
            self._plan = make_plan(self._config, file, rows)
        if self._plan is None:
            return
        files = self._opened(self._plan)
        while self._torn:
            files.refuse(self._torn.pop(0))
        if rows.height:
            check_file(self._plan, file, rows.schema)
            self._keep(rows, self._plan, places, file)

    def _by_user(self, rows: pl.DataFrame, places: np.ndarray, file: str) -> tuple[pl.DataFrame, np.ndarray]:
        """Rows and places after the user's own steps and labels."""
        config = self._config
        for step in config.steps:
            rows, stays = apply_step(rows, step, file)
            gone = rejection(file, np.flatnonzero(~stays), "", f"left out by {step}")
            self._torn.append(self._placed(gone, places))
            places = places[stays]
        if rows.height:
            rows = labelled(rows, config.target, config.label, file, self._votes)
        if self._reader and rows.height:
            rows, stays, gone = written(rows, config, file)
            self._torn.append(self._placed(gone, places))
            places = places[stays]
        return rows, places

    def _keep(self, rows: pl.DataFrame, plan: Plan, places: np.ndarray, file: str) -> None:
        """Args: places: (n, 2), the number of each row's file and its number there."""
        files = self._opened(plan)
        cleaned = clean(rows, plan, file, np.arange(rows.height))
        if self._reader:
            cleaned = aligned(cleaned, rows, self._config, self._reader, file)
        files.refuse(self._placed(cleaned.rejected, places))
        files.statistics.before.add(cleaned.parsed)
        if cleaned.rows.height:
            self._write(files, plan, cleaned.rows, places[cleaned.numbers])

    def _placed(self, lines: pl.DataFrame, places: np.ndarray) -> pl.DataFrame:
        """Lines of the quarantine with the file and number of each row instead of its place in the batch."""
        if not lines.height:
            return lines
        here = places[lines["row"].to_numpy()]
        names = pl.Series("file", [self._names[number] for number in here[:, 0]], dtype=pl.String)
        return lines.with_columns(names, pl.Series("row", here[:, 1], dtype=pl.Int64))

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
