"""The second pass: rows without duplicates, split and written, with what describes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl

from modelyard.catalog import Attempt
from modelyard.datasets import REPORT_FILE, SPLITS, TARGET_FILE, TRANSFORM_FILE, Split
from modelyard.errors import DataError
from modelyard.preprocess.clean import rejection
from modelyard.preprocess.config import PreprocessConfig
from modelyard.preprocess.intake import TakenIn
from modelyard.preprocess.prefetch import ahead
from modelyard.preprocess.schema import Plan
from modelyard.preprocess.shards import ShardWriter
from modelyard.preprocess.splits import assigner
from modelyard.preprocess.spool import Chunk
from modelyard.task_kinds import task_kind
from modelyard.transform import Moments, fit_scaling


def write_output(attempt: Attempt, config: PreprocessConfig, plan: Plan, taken: TakenIn) -> None:
    """Write the data set.

    Raises:
        DataError: too many rows were refused, or a split cannot be used.
    """
    _Output(attempt, config, plan, taken).write()


class _Output:
    def __init__(self, attempt: Attempt, config: PreprocessConfig, plan: Plan, taken: TakenIn) -> None:
        self._attempt, self._config, self._plan, self._taken = attempt, config, plan, taken
        self._assigner = assigner(config.split, plan)
        self._num_duplicates = 0
        self._moments: Moments | None = None
        self._labels: dict[str, Counter[Any]] = {split: Counter() for split in SPLITS}
        self._writers = {split: self._writer(split) for split in SPLITS}

    def write(self) -> None:
        for chunk, codes in self._split_rows():
            for number, split in enumerate(SPLITS):
                self._add(split, chunk.rows.filter(pl.Series(codes == number)))
        for writer in self._writers.values():
            writer.close()
        self._taken.quarantine.close()
        self._taken.folder.close()
        self._taken.quarantine.check(self._taken.num_read, self._config.max_rejected_fraction)
        self._check_splits()
        self._describe()

    def _split_rows(self) -> Iterator[tuple[Chunk, np.ndarray]]:
        """Rows that stay, and the number of each one's split."""
        for chunk in self._fresh():
            yield chunk, self._assigner.assign(chunk.rows, chunk.shares)

    def _fresh(self) -> Iterator[Chunk]:
        """Rows without those that repeat an earlier one, or a value that must be unique."""
        start = 0
        for chunk in ahead(self._taken.spool.chunks()):
            here = slice(start, start + chunk.rows.height)
            start = here.stop
            repeated = np.array(self._taken.repeated[here])
            self._num_duplicates += int(repeated.sum())
            gone = repeated
            for name, mask in self._taken.taken.items():
                clash = mask[here] & ~gone & chunk.rows[name].is_not_null().to_numpy()
                shown = chunk.rows[name].filter(pl.Series(clash))
                self._taken.quarantine.add(rejection(chunk.file, chunk.numbers[clash], name, "not unique", shown))
                gone = gone | clash
            yield _without(chunk, gone)

    def _add(self, split: Split, rows: pl.DataFrame) -> None:
        if rows.height:
            target = self._plan.target.name
            for label, count in rows.group_by(target).len().iter_rows():
                self._labels[split][label] += count
            self._writers[split].add(rows)

    def _writer(self, split: str) -> ShardWriter:
        return ShardWriter(
            self._taken.folder,
            split,
            self._plan.table_schema,
            shard_rows=self._config.shard_rows,
            on_shard=self._measure if split == "train" else None,
        )

    def _measure(self, shard: pl.DataFrame) -> None:
        """Statistics shard by shard: how the user's files were cut must not show in the last digit."""
        part = Moments.of(shard.select(self._plan.features).to_numpy())
        self._moments = self._moments.merge(part) if self._moments else part

    def _check_splits(self) -> None:
        for split, writer in self._writers.items():
            if not writer.num_rows:
                raise DataError(
                    f"the {split} split is empty: {self._rows()['kept']} rows are too few for a fraction of"
                    f" {getattr(self._config.split, split):g}, or too few identities; add data or raise split.{split}"
                )

    def _describe(self) -> None:
        target = task_kind(self._config.task).fit_target(self._plan.target.name, set(self._labels["train"]))
        self._check_labels()
        assert self._moments is not None  # the training split is not empty
        transform = fit_scaling(self._plan.features, self._moments, self._config.transform)
        self._attempt.add_json(TRANSFORM_FILE, transform.model_dump(mode="json"))
        self._attempt.add_json(TARGET_FILE, target.model_dump(mode="json"))
        self._attempt.add_json(REPORT_FILE, self._report())
        self._attempt.facts.update(
            **self._rows(),
            splits={split: writer.num_rows for split, writer in self._writers.items()},
            num_features=len(self._plan.features),
        )

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
