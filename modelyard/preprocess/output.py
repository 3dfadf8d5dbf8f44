"""The second pass: rows without duplicates, split and written, with what describes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl

from modelyard.catalog import Attempt
from modelyard.datasets import REPORT_FILE, SCHEMA_FILE, SPLITS, TARGET_FILE, TRANSFORM_FILE, Split
from modelyard.errors import DataError
from modelyard.preprocess.clean import rejection
from modelyard.preprocess.config import PreprocessConfig
from modelyard.preprocess.duplicates import HashLedger
from modelyard.preprocess.fitting import TransformFitter, even_batches, limits
from modelyard.preprocess.intake import TakenIn
from modelyard.preprocess.prefetch import ahead
from modelyard.preprocess.profile import TableProfile
from modelyard.preprocess.rows import row_hashes
from modelyard.preprocess.schema import Column, Plan, schema_yaml
from modelyard.preprocess.shards import ShardWriter
from modelyard.preprocess.splits import assigner
from modelyard.preprocess.spool import Chunk
from modelyard.task_kinds import task_kind
from modelyard.transform import Moments, Sample


def write_output(attempt: Attempt, config: PreprocessConfig, plan: Plan, taken: TakenIn) -> None:
    """Write the data set.

    Raises:
        DataError: too many rows were refused, or a split cannot be used.
    """
    _Output(attempt, config, plan, taken).write()


class _Output:
    def __init__(self, attempt: Attempt, config: PreprocessConfig, plan: Plan, taken: TakenIn) -> None:
        self._attempt, self._config, self._plan, self._taken = attempt, config, plan, taken
        self._num_duplicates = 0
        self._fitter = TransformFitter(config, plan)
        self._profile = TableProfile(plan.columns)
        self._limits: dict[str, tuple[float, float]] = {}
        self._target_moments: Moments | None = None
        self._labels: dict[str, Counter[Any]] = {split: Counter() for split in SPLITS}
        self._keys = {
            name: HashLedger(attempt.scratch / f"disjoint-{number}")
            for number, name in enumerate(config.split.disjoint)
        }
        self._writers = {split: self._writer(split) for split in SPLITS}

    def write(self) -> None:
        self._limits = self._fit_limits()
        for chunk, codes in self._split_rows(final=True):
            self._profile.add(chunk.rows)
            for name, ledger in self._keys.items():
                ledger.add(row_hashes(chunk.rows, [name]), codes)
            for number, split in enumerate(SPLITS):
                self._add(split, chunk.rows.filter(pl.Series(codes == number)))
        for writer in self._writers.values():
            writer.close()
        self._taken.quarantine.close()
        self._taken.folder.close()
        self._taken.quarantine.check(self._taken.num_read, self._config.max_rejected_fraction)
        self._check_splits()
        self._check_leaks()
        self._describe()

    def _fit_limits(self) -> dict[str, tuple[float, float]]:
        """Bounds of the columns whose outliers are refused: another look at the training rows, if there are any."""
        columns = [column for column in self._plan.columns if _refuses_outliers(column)]
        if not columns:
            return {}
        samples = {column.name: Sample() for column in columns}
        moments: Moments | None = None
        for rows in even_batches(self._train_rows()):
            part = Moments.of(np.column_stack([rows[column.name].to_numpy() for column in columns]))
            moments = moments.merge(part) if moments else part
            for name, sample in samples.items():
                sample.add(rows[name].to_numpy())
        if moments is None:
            return {}  # an empty split is said later, with what to do
        return {column.name: limits(column, moments, at, samples[column.name]) for at, column in enumerate(columns)}

    def _train_rows(self) -> Iterator[pl.DataFrame]:
        for chunk, codes in self._split_rows(final=False):
            yield chunk.rows.filter(pl.Series(codes == SPLITS.index("train")))

    def _split_rows(self, *, final: bool) -> Iterator[tuple[Chunk, np.ndarray]]:
        """Rows that stay, and the number of each one's split; what goes is put down in the final pass alone."""
        assign = assigner(self._config.split, self._plan).assign
        start = 0
        for chunk in ahead(self._taken.spool.chunks()):
            here = slice(start, start + chunk.rows.height)
            start = here.stop
            gone = np.array(self._taken.repeated[here])
            if final:
                self._num_duplicates += int(gone.sum())
            fresh = self._refused(chunk, here, gone, final)
            codes = assign(fresh.rows, fresh.shares)
            yield self._without_outliers(fresh, codes, final)

    def _refused(self, chunk: Chunk, here: slice, gone: np.ndarray, final: bool) -> Chunk:
        """Without the rows that are gone, and without those that repeat a value of a column that must be unique."""
        for name, mask in self._taken.taken.items():
            clash = mask[here] & ~gone & chunk.rows[name].is_not_null().to_numpy()
            self._put_down(chunk, clash, name, "not unique", final)
            gone = gone | clash
        return _without(chunk, gone)

    def _without_outliers(self, chunk: Chunk, codes: np.ndarray, final: bool) -> tuple[Chunk, np.ndarray]:
        gone = np.zeros(chunk.rows.height, dtype=bool)
        for name, (low, high) in self._limits.items():
            values = chunk.rows[name].to_numpy()
            far = ((values < low) | (values > high)) & ~gone
            self._put_down(chunk, far, name, "outlier", final)
            gone |= far
        return _without(chunk, gone), codes[~gone]

    def _put_down(self, chunk: Chunk, which: np.ndarray, column: str, reason: str, final: bool) -> None:
        if final and which.any():
            shown = chunk.rows[column].filter(pl.Series(which))
            self._taken.quarantine.add(rejection(chunk.file, chunk.numbers[which], column, reason, shown))

    def _add(self, split: Split, rows: pl.DataFrame) -> None:
        if rows.height:
            target = self._plan.target
            # Numbers are described by their moments, texts by their tokens: not counted one by one.
            labels = () if target.is_number or target.kind == "prose" else rows.group_by(target.name).len().iter_rows()
            for label, count in labels:
                self._labels[split][label] += count
            self._writers[split].add(rows)

    def _writer(self, split: str) -> ShardWriter:
        return ShardWriter(
            self._taken.folder,
            split,
            self._plan.table_schema,
            shard_rows=self._config.shard_rows,
            # Shard by shard: how the user's files were cut must not show in the last digit.
            on_shard=self._fit_on if split == "train" else None,
        )

    def _fit_on(self, shard: pl.DataFrame) -> None:
        self._fitter.add(shard)
        if self._plan.target.is_number:
            part = Moments.of(shard[[self._plan.target.name]].to_numpy())
            self._target_moments = self._target_moments.merge(part) if self._target_moments else part

    def _target_scale(self) -> tuple[float, float]:
        """Mean and deviation of the training split's target; 0 and 1 where it holds classes."""
        found = self._target_moments
        return (float(found.mean[0]), float(found.deviation[0])) if found else (0.0, 1.0)

    def _check_leaks(self) -> None:
        for name, ledger in self._keys.items():
            num_shared = ledger.num_in_several()
            if num_shared:
                raise DataError(
                    f"{num_shared} values of {name!r} occur in more than one split, so the test is known from training;"
                    f" add {name!r} to preprocess.identity, or take it from split.disjoint"
                )

    def _check_splits(self) -> None:
        for split, writer in self._writers.items():
            if not writer.num_rows:
                raise DataError(
                    f"the {split} split is empty: {self._rows()['kept']} rows are too few for a fraction of"
                    f" {getattr(self._config.split, split):g}, or too few identities; add data or raise split.{split}"
                )

    def _describe(self) -> None:
        self._attempt.add_bytes(SCHEMA_FILE, schema_yaml(self._config, self._plan))
        self._attempt.add_json(REPORT_FILE, self._report())
        self._attempt.facts.update(
            **self._rows(),
            splits={split: writer.num_rows for split, writer in self._writers.items()},
            num_features=len(self._plan.features),
        )
        if self._config.task == "language_modelling":
            self._write_tokens()
        else:
            self._write_transform()

    def _write_tokens(self) -> None:
        from modelyard.preprocess.tokens import write_tokens  # tokenizers: only where texts are

        name = self._plan.target.name

        def texts() -> Iterator[tuple[Split, list[str]]]:
            for chunk, codes in self._split_rows(final=False):
                for number, split in enumerate(SPLITS):
                    yield split, chunk.rows.filter(pl.Series(codes == number))[name].to_list()

        self._attempt.facts["tokens"] = write_tokens(self._attempt, self._config.transform.tokens, name, texts)

    def _write_transform(self) -> None:
        kind = task_kind(self._config.task)
        target = kind.fit_target(self._plan.target.name, set(self._labels["train"]), *self._target_scale())
        self._check_labels()
        transform = self._fitter.finish(self._train_rows, lambda values: kind.encode(target, values.to_pandas()))
        self._attempt.add_json(TRANSFORM_FILE, transform.model_dump(mode="json"))
        self._attempt.add_json(TARGET_FILE, target.model_dump(mode="json"))

    def _check_labels(self) -> None:
        """A class that training never sees could be neither scored nor predicted."""
        for split in SPLITS:
            strangers = sorted(map(str, self._labels[split].keys() - self._labels["train"].keys()))
            if strangers:
                raise DataError(
                    f"target column {self._plan.target.name!r}: the {split} split has classes that the training split"
                    f" has not: {', '.join(strangers[:5])}; add rows of them, or list the wanted ones in target_values"
                )

    def _rows(self) -> dict[str, int]:
        kept = sum(writer.num_rows for writer in self._writers.values())
        rejected, duplicates = self._taken.quarantine.num_rows, self._num_duplicates
        assert self._taken.num_read == kept + rejected + duplicates, "a row went missing"
        return {"read": self._taken.num_read, "kept": kept, "rejected": rejected, "duplicates": duplicates}

    def _report(self) -> dict[str, Any]:
        reasons = self._taken.quarantine.reasons
        return {
            "rows": self._rows(),
            "rejected": [
                {"column": column, "reason": reason, "rows": count}
                for (column, reason), count in sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
            ],
            "splits": {
                split: {
                    "rows": writer.num_rows,
                    "labels": {str(label): count for label, count in sorted(self._labels[split].items())},
                }
                for split, writer in self._writers.items()
            },
            "profile": {"before": self._taken.profile, "after": self._profile.as_json()},
            "columns": {
                "features": self._plan.features,
                "target": self._plan.target.name,
                "identity": self._plan.identity,
                "ignored": self._plan.ignored,
            },
        }


def _without(chunk: Chunk, gone: np.ndarray) -> Chunk:
    if not gone.any():
        return chunk
    return Chunk(chunk.file, chunk.rows.filter(pl.Series(~gone)), chunk.numbers[~gone], chunk.shares[~gone])


def _refuses_outliers(column: Column) -> bool:
    return column.rule.outliers is not None and column.rule.outliers.action == "reject"
