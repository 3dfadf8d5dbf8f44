"""What is known of a partition beside its rows: enough to describe the whole data set without reading them again."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import polars as pl

from modelyard.datasets import SPLITS
from modelyard.errors import DataError
from modelyard.preprocess.clean import DROPPED, REASONS
from modelyard.preprocess.config import PreprocessConfig
from modelyard.preprocess.fitting import TrainStatistics
from modelyard.preprocess.labels import Votes
from modelyard.preprocess.profile import SAMPLE_VALUES, TableProfile
from modelyard.preprocess.schema import Column, Plan
from modelyard.token_labels import spans_of_json
from modelyard.transform.fit import SAMPLE_VALUES as QUANTILE_VALUES

STATISTICS_FILE = "statistics.json.gz"
PARTITION_QUANTILE_VALUES = 32_768
TOP_REASONS = 5


class Statistics:
    """Counts, profiles and what fits the transform: of a partition, or (``whole``) of all of them together.

    Attributes:
        num_read: rows of the files, good or bad.
        reasons: (column, reason) -> refused rows.
        rows: split -> rows that were kept.
        labels: split -> label -> rows, or spans; none where the target is a number.
    """

    def __init__(self, config: PreprocessConfig, plan: Plan, *, whole: bool = False) -> None:
        self._plan = plan
        self.num_read = 0
        self.num_duplicates = 0
        self.reasons: Counter[tuple[str, str]] = Counter()
        self.rows: Counter[str] = Counter()
        self.votes = Votes()
        self.labels: dict[str, Counter[Any]] = {split: Counter() for split in SPLITS}
        if whole:
            self.before, self.after = (TableProfile(plan.columns, SAMPLE_VALUES) for _ in range(2))
            self.train = TrainStatistics(config, plan, QUANTILE_VALUES)
        else:
            self.before, self.after = (TableProfile.of_partition(plan.columns) for _ in range(2))
            self.train = TrainStatistics(config, plan, PARTITION_QUANTILE_VALUES)

    def add(self, split: str, shard: pl.DataFrame) -> None:
        """Take in rows that were kept, as they were cut into a file."""
        self.rows[split] += shard.height
        self.after.add(shard)
        target = self._plan.target
        for label, count in _labels(target, shard):
            self.labels.setdefault(split, Counter())[label] += count
        if split == "train":
            self.train.add(shard)

    def take_read(self, num_read: int, before: TableProfile | None, votes: Votes) -> None:
        """What is known of the rows as they came; ``before`` is None where none came."""
        self.num_read, self.votes = num_read, votes
        self.before = before or self.before

    def refuse(self, lines: pl.DataFrame) -> None:
        """Take in lines of the quarantine."""
        for column, reason, count in lines.group_by("column", "reason").len().iter_rows():
            self.reasons[column, reason] += count

    def pack(self) -> bytes:
        """As a file: the same statistics are the same bytes."""
        state = {
            **self._read_state(),
            "rows": dict(self.rows),
            "labels": {split: sorted(counts.items(), key=str) for split, counts in self.labels.items()},
            "after": self.after.state(),
            "train": self.train.state(),
        }
        return gzip.compress(json.dumps(state).encode(), compresslevel=1, mtime=0)

    def _read_state(self) -> dict[str, Any]:
        return {
            "read": self.num_read,
            "duplicates": self.num_duplicates,
            "reasons": self.told_reasons,
            "before": self.before.state(),
            "votes": self.votes.state(),
        }

    @property
    def told_reasons(self) -> list[list[Any]]:
        """Column, reason and count of refused rows."""
        return sorted([column, reason, count] for (column, reason), count in self.reasons.items())

    def merge(self, state: dict[str, Any]) -> None:
        """Take in what `unpack` gave of the partition behind those seen so far."""
        self.merge_read(state)
        self.rows.update(state["rows"])
        for split, counts in state["labels"].items():
            for label, count in counts:
                self.labels.setdefault(split, Counter())[label] += count
        self.after.merge(state["after"])
        self.train.merge(state["train"])

    def merge_read(self, state: dict[str, Any]) -> None:
        """The part that is about the rows as they came."""
        self.num_read += state["read"]
        self.num_duplicates += state["duplicates"]
        for column, reason, count in state["reasons"]:
            self.reasons[column, reason] += count
        self.before.merge(state["before"])
        self.votes.merge(state["votes"])

    @property
    def counts(self) -> dict[str, int]:
        """Where the rows went; rows read = kept + rejected + duplicates."""
        kept, rejected = sum(self.rows.values()), sum(self.reasons.values())
        assert self.num_read == kept + rejected + self.num_duplicates, "a row went missing"
        return {"read": self.num_read, "kept": kept, "rejected": rejected, "duplicates": self.num_duplicates}


def _labels(target: Column, shard: pl.DataFrame) -> Iterable[tuple[Any, int]]:
    """How often each label occurs. Numbers are described by their moments, texts by their tokens: not counted one by one."""
    if target.is_number or target.kind == "prose":
        return ()
    if target.kind == "spans":
        return Counter(span.label for kept in shard[target.name] for span in spans_of_json(kept)).items()
    return shard.group_by(target.name).len().iter_rows()


def check_refused(num_read: int, reasons: Mapping[tuple[str, str], int], allowed: float) -> None:
    """Raise if more of the rows than allowed were refused.

    Args:
        reasons: (column, reason) -> refused rows.

    Raises:
        DataError: with the numbers and the top reasons.
    """
    # Rows that the config asked to leave out are quarantined, but not held against the data.
    held = {key: count for key, count in reasons.items() if key[1] != REASONS[DROPPED]}
    refused = sum(held.values())
    if refused > allowed * num_read:
        top = "; ".join(
            f"{f'{column!r} ' if column else ''}{reason} ({count} rows)"
            for (column, reason), count in sorted(held.items(), key=lambda item: (-item[1], item[0]))[:TOP_REASONS]
        )
        raise DataError(
            f"{refused} of {num_read} rows ({refused / num_read:.1%}) cannot be used, more than the"
            f" {allowed:.1%} of preprocess.max_rejected_fraction: {top}"
        )


def unpack(body: bytes) -> dict[str, Any]:
    """What `Statistics.pack` wrote."""
    return json.loads(gzip.decompress(body))
