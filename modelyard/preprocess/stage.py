"""The preprocess stage: one pass over the sources, everything else in the files beside this one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Attempt, Catalog, Origin, Product, Work
from modelyard.code_version import code_version
from modelyard.datasets import REPORT_FILE, SPLITS, TARGET_FILE, TRANSFORM_FILE
from modelyard.errors import DataError
from modelyard.preprocess.clean import REJECTED_SCHEMA, clean
from modelyard.preprocess.config import EVERY, PreprocessConfig
from modelyard.preprocess.rows import SeenRows, assign_splits, identity_digests, row_digests
from modelyard.preprocess.schema import Plan, check_columns, check_file, make_plan
from modelyard.preprocess.shards import ShardWriter
from modelyard.preprocess.snapshot import Source, read_snapshot
from modelyard.preprocess.sources import batches, fetched, schema_of
from modelyard.task_kinds import task_kind
from modelyard.transform import Moments, fit_scaling

LIBRARIES = ("numpy", "pandas", "pyarrow")
TOP_REASONS = 5


def preprocess(catalog: Catalog, snapshot_ref: ArtifactRef, config: PreprocessConfig, origin: Origin) -> Product:
    """Make a data set from a snapshot.

    Args:
        catalog: holds the snapshot; takes the data set.
        snapshot_ref: a ``snapshot`` artifact.
        config: see `PreprocessConfig`.
        origin: who asks.

    Returns:
        A ``dataset`` artifact, laid out as `modelyard.datasets` says. Rows read = kept + rejected + duplicates.

    Raises:
        DataError: the data cannot be used as it is: file, column and what to do are in the sentence.
        ConfigError: the config speaks of a column that plays no such part.
    """
    work = Work(
        kind="dataset",
        config=config.model_dump(mode="json"),
        inputs={"snapshot": snapshot_ref},
        code_version=code_version("modelyard.preprocess", LIBRARIES),
    )
    return catalog.produce(work, partial(_build, catalog, snapshot_ref, config), origin)


def _build(catalog: Catalog, snapshot_ref: ArtifactRef, config: PreprocessConfig, attempt: Attempt) -> None:
    folder, sources = read_snapshot(catalog, snapshot_ref)
    builder: _Builder | None = None
    for source, batch, first_row in _raw_batches(attempt, folder, sources, config):
        builder = builder or _Builder(attempt, config, make_plan(config, source.name, batch))
        check_file(builder.plan, source.name, batch.schema)
        builder.add(batch, source.name, first_row)
    if builder is None:
        raise DataError(f"{folder}: no rows in {len(sources)} files; check the data set's URI")
    builder.finish()


def _raw_batches(
    attempt: Attempt, folder: str, sources: list[Source], config: PreprocessConfig
) -> Iterator[tuple[Source, pa.RecordBatch, int]]:
    """Every source's rows in order: the source, some rows, the number of the first of them counted from 1."""
    for source in sources:
        with fetched(attempt.store, folder, source, attempt.scratch) as path:
            schema = schema_of(path, source.name)
            check_columns(config, source.name, schema)
            first_row = 1
            for batch in batches(path, source.name, _wanted(config, schema)):
                if len(batch):
                    yield source, batch, first_row
                    first_row += len(batch)


def _wanted(config: PreprocessConfig, schema: pa.Schema) -> list[str]:
    if config.features == EVERY:
        return list(schema.names)
    return list(dict.fromkeys([*config.features, config.target, *config.identity]))


class _Builder:
    """What one pass over the rows accumulates."""

    def __init__(self, attempt: Attempt, config: PreprocessConfig, plan: Plan) -> None:
        self.plan = plan
        self._attempt, self._config = attempt, config
        self._seen = SeenRows()
        self._moments: Moments | None = None
        self._target_moments: Moments | None = None
        self._num_read = self._num_duplicates = 0
        self._reasons: Counter[tuple[str, str]] = Counter()
        self._labels: dict[str, Counter[Any]] = {split: Counter() for split in SPLITS}
        self._rejected = self._writer("rejected", REJECTED_SCHEMA)
        self._splits = {split: self._writer(split, plan.table_schema) for split in SPLITS}

    def add(self, batch: pa.RecordBatch, file: str, first_row: int) -> None:
        """Clean a batch and put each row where it belongs."""
        self._num_read += len(batch)
        cleaned = clean(batch, self.plan, file, first_row)
        self._rejected.add(cleaned.rejected)
        self._reasons.update(zip(cleaned.rejected["column"], cleaned.rejected["reason"], strict=True))
        digests = row_digests(cleaned.rows, self.plan)
        fresh = self._seen.fresh(digests)
        self._num_duplicates += int((~fresh).sum())
        numbers = assign_splits(identity_digests(cleaned.rows, self.plan, digests), self._config.split)
        for number, split in enumerate(SPLITS):
            rows = cleaned.rows[fresh & (numbers == number)]
            if self.plan.label_type != "number":  # numbers are described by their moments, not counted one by one
                self._labels[split].update(rows[self.plan.target].tolist())
            self._splits[split].add(rows)

    def finish(self) -> None:
        """Write what describes the rows.

        Raises:
            DataError: too many rows were refused, or a split cannot be used.
        """
        for writer in (self._rejected, *self._splits.values()):
            writer.close()
        self._check_rejected()
        self._check_splits()
        kind = task_kind(self._config.task)
        target = kind.fit_target(self.plan.target, set(self._labels["train"]), *self._target_scale())
        self._check_labels()
        assert self._moments is not None  # the training split is not empty
        transform = fit_scaling(self.plan.features, self._moments, self._config.transform)
        self._attempt.add_json(TRANSFORM_FILE, transform.model_dump(mode="json"))
        self._attempt.add_json(TARGET_FILE, target.model_dump(mode="json"))
        self._attempt.add_json(REPORT_FILE, self._report())
        self._attempt.facts.update(
            **self._rows(),
            splits={split: writer.num_rows for split, writer in self._splits.items()},
            num_features=len(self.plan.features),
        )

    def _writer(self, folder: str, schema: pa.Schema) -> ShardWriter:
        return ShardWriter(
            folder,
            schema,
            shard_rows=self._config.shard_rows,
            scratch=self._attempt.scratch,
            publish=self._attempt.add,
            on_shard=self._measure if folder == "train" else None,
        )

    def _measure(self, shard: pd.DataFrame) -> None:
        """Statistics shard by shard: how the user's files were cut must not show in the last digit."""
        part = Moments.of(np.ascontiguousarray(shard[self.plan.features].to_numpy(dtype=np.float64)))
        self._moments = self._moments.merge(part) if self._moments else part

        if self.plan.label_type == "number":
            values = Moments.of(shard[[self.plan.target]].to_numpy(dtype=np.float64))
            self._target_moments = self._target_moments.merge(values) if self._target_moments else values

    def _target_scale(self) -> tuple[float, float]:
        """Mean and deviation of the training split's target; 0 and 1 where it holds classes."""
        found = self._target_moments
        return (float(found.mean[0]), float(found.deviation[0])) if found else (0.0, 1.0)

    def _check_rejected(self) -> None:
        fraction = self._rejected.num_rows / self._num_read
        allowed = self._config.max_rejected_fraction
        if fraction > allowed:
            top = "; ".join(
                f"{column!r} {reason} ({count} rows)"
                for (column, reason), count in self._reasons.most_common(TOP_REASONS)
            )
            raise DataError(
                f"{self._rejected.num_rows} of {self._num_read} rows ({fraction:.1%}) cannot be used, more than the"
                f" {allowed:.1%} of preprocess.max_rejected_fraction: {top}"
            )

    def _check_splits(self) -> None:
        for split, writer in self._splits.items():
            if not writer.num_rows:
                raise DataError(
                    f"the {split} split is empty: {self._rows()['kept']} rows are too few for a fraction of"
                    f" {getattr(self._config.split, split):g}, or too few identities; add data or raise split.{split}"
                )

    def _check_labels(self) -> None:
        """A class that training never sees could be neither scored nor predicted."""
        for split in SPLITS:
            strangers = sorted(map(str, self._labels[split].keys() - self._labels["train"].keys()))
            if strangers:
                raise DataError(
                    f"target column {self.plan.target!r}: the {split} split has classes that the training split has"
                    f" not: {', '.join(strangers[:5])}; add rows of them, or list the wanted ones in target_values"
                )

    def _rows(self) -> dict[str, int]:
        kept = sum(writer.num_rows for writer in self._splits.values())
        rejected, duplicates = self._rejected.num_rows, self._num_duplicates
        assert self._num_read == kept + rejected + duplicates, "a row went missing"
        return {"read": self._num_read, "kept": kept, "rejected": rejected, "duplicates": duplicates}

    def _report(self) -> dict[str, Any]:
        return {
            "rows": self._rows(),
            "rejected": [
                {"column": column, "reason": reason, "rows": count}
                for (column, reason), count in sorted(self._reasons.items(), key=lambda item: (-item[1], item[0]))
            ],
            "splits": {
                split: {
                    "rows": writer.num_rows,
                    "labels": {str(label): count for label, count in sorted(self._labels[split].items())},
                }
                for split, writer in self._splits.items()
            },
            "columns": {
                "features": self.plan.features,
                "target": self.plan.target,
                "identity": self.plan.identity,
                "ignored": self.plan.ignored,
            },
        }
