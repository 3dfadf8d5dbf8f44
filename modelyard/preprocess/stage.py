"""The preprocess stage: partition by partition, each kept on its own; everything else in the files beside it.

prepare    a partition's files read, checked, hashed, split and written, as if it were alone
whole      what only all partitions together tell: repeated rows, classes before, limits of outliers
revise     the partitions that this concerns, written once more
assemble   shards where they lie, one transform, target and report

What was prepared or revised before is found in the store. A data set that grew is so made of its new files, and is
the same to the last bit as if all had been made at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Attempt, Catalog, Origin, Product, Work
from modelyard.code_version import code_version
from modelyard.errors import DataError
from modelyard.preprocess.assemble import assemble
from modelyard.preprocess.config import PreprocessConfig
from modelyard.preprocess.crews import Crew, Inline, Spread, in_threads, shares_of
from modelyard.preprocess.dask_workers import DaskCrew, require_dask
from modelyard.preprocess.near_rows import NearRows, check_near_leaks, find_near, near_report
from modelyard.preprocess.partitions import Partition, partitions
from modelyard.preprocess.prepare import PLAN_FILE, Preparation, prepare
from modelyard.preprocess.processes import ProcessCrew, division
from modelyard.preprocess.protect import Protector
from modelyard.preprocess.ray_workers import RayCrew, require_ray_here
from modelyard.preprocess.revise import Revising, Revision, revise
from modelyard.preprocess.schema import Plan
from modelyard.preprocess.snapshot import read_snapshot
from modelyard.preprocess.whole import (
    Part,
    check_leaks,
    check_prepared,
    find_repeated,
    fit_limits,
    label_counts,
    merged,
    refused_outliers,
    split_rows,
)
from modelyard.transform import TextTransform

PARALLEL_LOOKUPS = 16
LIBRARIES = ("numpy", "polars", "pyarrow")
CREWS = {"processes": ProcessCrew, "dask": DaskCrew, "ray": RayCrew}
REQUIRED = {"dask": require_dask, "ray": require_ray_here}


def preprocess(
    catalog: Catalog,
    snapshot_ref: ArtifactRef,
    config: PreprocessConfig,
    origin: Origin,
    sensitive_key: bytes | None = None,
    spread: Spread = in_threads,
) -> Product:
    """Make a data set from a snapshot.

    Args:
        catalog: holds the snapshot; takes the data set.
        snapshot_ref: a ``snapshot`` artifact.
        config: see `PreprocessConfig`.
        origin: who asks.
        sensitive_key: for the columns that are to be hashed.
        spread: hands shares of the partitions to those who prepare them; who wants to watch has one of their own.

    Returns:
        A ``dataset`` artifact, laid out as `modelyard.datasets` says. Rows read = kept + rejected + duplicates.

    Raises:
        DataError: the data cannot be used as it is: file, column and what to do are in the sentence.
        ConfigError: the config speaks of a column that plays no such part.
        MissingExtra, ClusterUnavailable, WorkerLost: of `config.workers`.
    """
    if require := REQUIRED.get(config.workers.kind):
        require()
    protector = Protector(config, sensitive_key)
    text = _text_transform(catalog, config)
    fingerprint = protector.fingerprint()
    work = Work(
        kind="dataset",
        config=_identity(config, text),
        inputs={"snapshot": snapshot_ref},
        code_version=code_version("modelyard.preprocess", _libraries(config), config.functions),
        occasion={"key": fingerprint} if fingerprint else {},
    )
    making = _Making(catalog, config, origin, protector, partition_code(config), text, spread)
    return catalog.produce(work, partial(making.build, snapshot_ref), origin)


def _text_transform(catalog: Catalog, config: PreprocessConfig) -> TextTransform | None:
    if config.text_column is None:
        return None
    from modelyard.preprocess.texts import text_transform  # tokenizers: only where texts are

    return text_transform(catalog.store, config)


def _identity(config: PreprocessConfig, text: TextTransform | None) -> dict[str, Any]:
    """What the data set depends on: of a tokenizer what it is, not where it lies."""
    said = config.decisive()
    if text is not None:
        known = text.model_dump(mode="json", exclude={"tokenizer"})
        said["transform"]["text"] = known | {"tokenizer": text.tokenizer_sha256}
    return said


def _libraries(config: PreprocessConfig) -> list[str]:
    """Those whose arithmetic shows in the result."""
    reduces = config.transform.components is not None or config.transform.select.mutual_information is not None
    learns = reduces or config.label.suspects > 0
    reads = config.task == "language_modelling" or config.text_column is not None
    found = [*_reading_libraries(config), *(["scikit-learn"] if learns else []), *(["tokenizers"] if reads else [])]
    return list(dict.fromkeys(found))


def partition_code(config: PreprocessConfig) -> str:
    """The code version of a partition: the user's own steps and labels make its rows too."""
    return code_version("modelyard.preprocess", _reading_libraries(config), config.functions)


def _reading_libraries(config: PreprocessConfig) -> list[str]:
    spans = ["tokenizers"] if config.task == "token_classification" else []
    return [*LIBRARIES, *(["pillow"] if config.read.image_size else []), *spans]


@dataclass(frozen=True)
class _Making:
    """One data set while it is made."""

    catalog: Catalog
    config: PreprocessConfig
    origin: Origin
    protector: Protector
    code_version: str
    text: TextTransform | None
    spread: Spread

    def build(self, snapshot_ref: ArtifactRef, attempt: Attempt) -> None:
        folder, sources = read_snapshot(self.catalog, snapshot_ref)
        groups = partitions(sources, self.config.partition_bytes)
        plan, parts = self._prepared(folder, groups)
        if plan is None:
            raise DataError(f"{folder}: no rows in {len(sources)} files; check the data set's URI")
        check_prepared(self.config, parts)
        near = self._near(parts, attempt.scratch)
        parts = self._revised(plan, parts, near, attempt.scratch)
        check_leaks(self.catalog, self.config, parts, attempt.scratch)
        if near and near.config.action == "check":
            check_near_leaks(self.catalog, near, parts, attempt.scratch)
        statistics = merged(self.catalog, self.config, plan, parts)
        rows_of = partial(split_rows, self.catalog, parts, attempt.scratch)
        told = {"near_duplicates": near_report(self.catalog, near, parts, attempt.scratch)} if near else {}
        assemble(attempt, self.config, plan, parts, statistics, rows_of, told, self.text)

    def _prepared(self, folder: str, groups: Sequence[Partition]) -> tuple[Plan | None, list[Part]]:
        """All partitions. The first that has rows decides the plan; those before it are then looked at again."""
        preparation = Preparation(
            folder=folder,
            partition=groups[0],
            config=self.config,
            plan=None,
            code_version=self.code_version,
            key_fingerprint=self.protector.fingerprint(),
            reader=self._reader(),
        )
        first, tried = None, 0
        while tried < len(groups) and first is None:
            product = self._prepare(preparation.model_copy(update={"partition": groups[tried]}))
            first = product if product.manifest.content.facts["has_plan"] else None
            tried += 1
        if first is None:
            return None, []
        plan = Plan.model_validate_json(self.catalog.read(first.ref, PLAN_FILE))
        preparation = preparation.model_copy(update={"plan": plan})
        others = [*groups[: tried - 1], *groups[tried:]]
        products = self._all_prepared([preparation.model_copy(update={"partition": group}) for group in others])
        products.insert(tried - 1, first)
        return plan, [Part(group, (product,)) for group, product in zip(groups, products, strict=True)]

    def _reader(self) -> ArtifactRef | None:
        """What partitions are to know of the tokenizer: only where spans are held against its tokens."""
        if self.text is None or self.config.task != "token_classification":
            return None
        from modelyard.preprocess.texts import kept

        return kept(self.catalog, self.text, self.origin)

    def _all_prepared(self, preparations: Sequence[Preparation]) -> list[Product]:
        found = self._found(preparations)
        missing = [preparation for product, preparation in zip(found, preparations, strict=True) if product is None]
        if not missing:
            return [product for product in found if product]
        with self._crew(len(missing)) as crew:
            self.spread(crew, shares_of(missing))
        # Whoever prepared them, they lie in the store now.
        made = iter(self._found(missing))
        return [
            product or replace(next(made) or self._prepare(preparation), reused=False)
            for product, preparation in zip(found, preparations, strict=True)
        ]

    def _found(self, preparations: Sequence[Preparation]) -> list[Product | None]:
        with ThreadPoolExecutor(PARALLEL_LOOKUPS) as pool:
            works = pool.map(lambda preparation: preparation.work, preparations)
            return list(pool.map(lambda work: self.catalog.find(work.kind, work.key), works))

    def _crew(self, num_partitions: int) -> Crew:
        workers = self.config.workers
        if workers.kind == "inline":
            return Inline(self._prepare)
        return CREWS[workers.kind](workers, self.origin, *division(workers, num_partitions))

    def _prepare(self, preparation: Preparation) -> Product:
        return prepare(self.catalog, preparation, self.protector, self.origin)

    def _near(self, parts: Sequence[Part], scratch: Path) -> NearRows | None:
        config = self.config.near_duplicates
        return find_near(self.catalog, config, parts, scratch) if config else None

    def _revised(self, plan: Plan, parts: Sequence[Part], near: NearRows | None, scratch: Path) -> list[Part]:
        revisions = find_repeated(self.catalog, self.config, parts, scratch)
        if near and near.config.action == "drop":
            revisions = [
                replace(revision, repeated=np.union1d(revision.repeated, near.positions(at)))
                for at, revision in enumerate(revisions)
            ]
        if self.config.split.method == "stratified":
            parts = self._stratified(plan, parts, revisions)
        else:
            parts = [self._revise(plan, part, revision) for part, revision in zip(parts, revisions, strict=True)]
        if refused_outliers(plan):
            limits = fit_limits(plan, partial(self._train_rows, parts, scratch))
            parts = [self._revise(plan, part, Revision(limits=limits)) for part in parts]
        return list(parts)

    def _stratified(self, plan: Plan, parts: Sequence[Part], revisions: Sequence[Revision]) -> list[Part]:
        """One after the other: which split the next row of a class goes to depends on how many were before."""
        starts: Counter[Any] = Counter()
        revised = []
        for part, revision in zip(parts, revisions, strict=True):
            revised.append(self._revise(plan, part, replace(revision, starts=dict(starts))))
            starts.update(label_counts(self.catalog, revised[-1]))
        return revised

    def _revise(self, plan: Plan, part: Part, revision: Revision) -> Part:
        if revision.changes_nothing:
            return part
        revising = Revising(
            ref=part.latest.ref,
            partition=part.partition,
            config=self.config,
            plan=plan,
            code_version=self.code_version,
        )
        return part.revised(revise(self.catalog, revising, revision, self.origin))

    def _train_rows(self, parts: Sequence[Part], scratch: Path) -> Iterator[pl.DataFrame]:
        return split_rows(self.catalog, parts, scratch, "train")
