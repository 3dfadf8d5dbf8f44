"""The first pass: every row of every source is read once, checked and hashed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from modelyard.catalog import Attempt
from modelyard.errors import DataError
from modelyard.preprocess.clean import DROPPED, REASONS, REJECTED_SCHEMA, clean
from modelyard.preprocess.config import EVERY, PreprocessConfig
from modelyard.preprocess.duplicates import HashLedger
from modelyard.preprocess.profile import TableProfile
from modelyard.preprocess.protect import Protector
from modelyard.preprocess.raw_rows import RawBatch
from modelyard.preprocess.rows import row_hashes
from modelyard.preprocess.schema import Plan, check_file, make_plan
from modelyard.preprocess.shards import ShardFolder, ShardWriter
from modelyard.preprocess.spool import Spool

TOP_REASONS = 5


class Quarantine:
    """Refused rows on their way to `rejected/`, counted by column and reason."""

    def __init__(self, folder: ShardFolder, shard_rows: int) -> None:
        self._writer = ShardWriter(folder, "rejected", REJECTED_SCHEMA, shard_rows=shard_rows)
        self.reasons: Counter[tuple[str, str]] = Counter()

    def add(self, lines: pl.DataFrame) -> None:
        if lines.height:
            self._writer.add(lines)
            for column, reason, count in lines.group_by("column", "reason").len().iter_rows():
                self.reasons[column, reason] += count

    def close(self) -> None:
        self._writer.close()

    @property
    def num_rows(self) -> int:
        return self._writer.num_rows

    @property
    def num_dropped(self) -> int:
        """Rows that the config asked to leave out: quarantined, but not held against the data."""
        return sum(count for (_, reason), count in self.reasons.items() if reason == REASONS[DROPPED])

    def check(self, num_read: int, allowed: float) -> None:
        """Raise if more of the rows than allowed were refused; says for which reasons most."""
        refused = self.num_rows - self.num_dropped
        if refused > allowed * num_read:
            top = "; ".join(
                f"{f'{column!r} ' if column else ''}{reason} ({count} rows)"
                for (column, reason), count in self.reasons.most_common(TOP_REASONS)
            )
            raise DataError(
                f"{refused} of {num_read} rows ({refused / num_read:.1%}) cannot be used, more than the"
                f" {allowed:.1%} of preprocess.max_rejected_fraction: {top}"
            )


@dataclass(frozen=True, kw_only=True)
class TakenIn:
    """What the first pass leaves to the second.

    Attributes:
        repeated: (rows of the spool,) whether the row is equal to an earlier one.
        taken: column -> the same mask for the values of a column that must be unique.
        profile: what the columns held, in every row that was one.
    """

    spool: Spool
    repeated: np.ndarray
    taken: dict[str, np.ndarray]
    quarantine: Quarantine
    folder: ShardFolder
    num_read: int
    profile: dict[str, Any]


class Intake:
    """Takes in batches of raw rows, in the order of arrival."""

    def __init__(self, attempt: Attempt, config: PreprocessConfig, protector: Protector) -> None:
        self.plan: Plan | None = None
        self._config, self._protector = config, protector
        self._folder = ShardFolder(attempt.scratch, attempt.add)
        self._quarantine = Quarantine(self._folder, config.shard_rows)
        self._spool = Spool(attempt.scratch / "spool")
        self._rows = HashLedger(attempt.scratch / "rows")
        self._unique = {
            name: HashLedger(attempt.scratch / f"unique-{number}")
            for number, (name, rule) in enumerate(config.columns.items())
            if rule.unique
        }
        self._profile: TableProfile | None = None
        self._num_read = 0

    def close(self) -> None:
        """Let go of threads and files, whatever happened."""
        self._spool.close()
        self._folder.abandon()

    def wanted(self, present: Sequence[str]) -> list[str]:
        """Columns of a file that are read at all."""
        dropped = {name for name, rule in self._config.columns.items() if rule.sensitive == "drop"}
        if self.plan is not None:
            return self.plan.names if set(self.plan.names) <= set(present) else list(present)
        named = [*self._config.named, *(name for name in self._config.columns if name in present)]
        chosen = present if self._config.features == EVERY else dict.fromkeys(named)
        return [name for name in chosen if name not in dropped]

    def add(self, batch: RawBatch, file: str) -> None:
        """Check a batch; every row of it is accounted for."""
        self._num_read += batch.num_read
        if batch.torn is not None:
            self._quarantine.add(batch.torn)
        if not batch.rows.height:
            return
        rows = self._protector.apply(batch.rows)
        self.plan = self.plan or make_plan(self._config, file, rows)
        check_file(self.plan, file, rows.schema)
        cleaned = clean(rows, self.plan, file, batch.numbers)
        self._quarantine.add(cleaned.rejected)
        self._profile = self._profile or TableProfile(self.plan.columns)
        self._profile.add(cleaned.parsed)
        if cleaned.rows.height:
            self._keep(file, cleaned.rows, cleaned.numbers, self.plan)

    def finish(self) -> TakenIn:
        """Every source was read.

        Raises:
            DataError: too many rows were refused.
        """
        self._quarantine.check(self._num_read, self._config.max_rejected_fraction)
        self._spool.close()
        return TakenIn(
            spool=self._spool,
            repeated=self._rows.repeated(),
            taken={name: ledger.repeated() for name, ledger in self._unique.items()},
            quarantine=self._quarantine,
            folder=self._folder,
            num_read=self._num_read,
            profile=self._profile.as_json() if self._profile else {},
        )

    def _keep(self, file: str, rows: pl.DataFrame, numbers: np.ndarray, plan: Plan) -> None:
        hashes = row_hashes(rows, plan.names)
        self._rows.add(hashes)
        for name, ledger in self._unique.items():
            ledger.add(row_hashes(rows, [name]))
        identity = row_hashes(rows, plan.identity) if plan.identity else hashes
        self._spool.add(file, rows, numbers, identity[:, 0] / 2.0**64)
