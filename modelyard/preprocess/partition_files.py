"""The files of a partition: shards of its rows by split, refused rows, and what the whole data set needs of it.

train/ validation/ test/   rows of each split; where the split of a row depends on the rows before its file, `rows/`
rejected/                  refused rows
statistics.json.gz         see `modelyard.preprocess.statistics`
places.parquet             for each kept row, in order of arrival: its split, its file and its number there
rows.ledger, unique-*      hashes of rows, of values that must be unique; positions are those in `places.parquet`
disjoint-*.ledger          hashes of values that must not occur in two splits
*.ledger-halves            the first halves of a ledger's hashes
"""

from __future__ import annotations

import numpy as np
import polars as pl
import pyarrow as pa
from pyarrow import parquet

from modelyard.catalog import Attempt
from modelyard.datasets import SPLITS
from modelyard.preprocess.clean import REJECTED_SCHEMA
from modelyard.preprocess.config import PreprocessConfig
from modelyard.preprocess.duplicates import LedgerWriter, halves_of
from modelyard.preprocess.rows import row_hashes
from modelyard.preprocess.schema import Plan
from modelyard.preprocess.shards import ShardFolder, ShardWriter
from modelyard.preprocess.statistics import STATISTICS_FILE, Statistics

UNSPLIT = "rows"
PLACES_FILE, ROWS_LEDGER = "places.parquet", "rows.ledger"
PLACES = pa.schema([("split", pa.int8()), ("file", pa.int32()), ("number", pa.int64())])


def disjoint_ledger(number: int) -> str:
    return f"disjoint-{number}.ledger"


def unique_ledgers(config: PreprocessConfig) -> dict[str, str]:
    """Column whose values must be unique -> its file."""
    names = [name for name, rule in config.columns.items() if rule.unique]
    return {name: f"unique-{number}.ledger" for number, name in enumerate(names)}


class PartitionFiles:
    """Writes the rows of a partition, with what describes them.

    Args:
        splits: folders of shards: those of `SPLITS`, or `UNSPLIT` alone.
    """

    def __init__(self, attempt: Attempt, config: PreprocessConfig, plan: Plan, splits: tuple[str, ...]) -> None:
        self._attempt, self._splits = attempt, splits
        self.statistics = Statistics(config, plan)
        self._folder = ShardFolder(attempt.scratch, attempt.add)
        self._rejected = ShardWriter(self._folder, "rejected", REJECTED_SCHEMA, shard_rows=config.shard_rows)
        self._writers = {split: self._writer(split, config, plan) for split in splits}
        self._disjoint = {
            name: LedgerWriter(attempt.scratch / disjoint_ledger(number))
            for number, name in enumerate(config.split.disjoint if splits == SPLITS else [])
        }

    def add(self, rows: pl.DataFrame, codes: np.ndarray) -> None:
        """Rows, and the number of each one's split (n,)."""
        for name, ledger in self._disjoint.items():
            pairs = pl.DataFrame(row_hashes(rows, [name]), schema=["high", "low"]).with_columns(split=pl.Series(codes))
            pairs = pairs.unique(maintain_order=True)
            ledger.add(pairs["high", "low"].to_numpy(), pairs["split"].to_numpy())
        for number, split in enumerate(self._splits):
            self._writers[split].add(rows.filter(pl.Series(codes == number)))

    def refuse(self, lines: pl.DataFrame) -> None:
        """Lines of the quarantine."""
        if lines.height:
            self._rejected.add(lines)
            self.statistics.refuse(lines)

    def finish(self) -> None:
        """Write what is left, and the description."""
        for writer in [*self._writers.values(), self._rejected]:
            writer.close()
        self._folder.close()
        for number, ledger in enumerate(self._disjoint.values()):
            add_ledger(self._attempt, disjoint_ledger(number), ledger)
        self._attempt.add_bytes(STATISTICS_FILE, self.statistics.pack())

    def abandon(self) -> None:
        """Let go of threads, whatever happened."""
        self._folder.abandon()

    def _writer(self, split: str, config: PreprocessConfig, plan: Plan) -> ShardWriter:
        def describe(shard: pl.DataFrame) -> None:
            # By shard: how batches were cut must not show in the last digit.
            self.statistics.add(split, shard)

        return ShardWriter(self._folder, split, plan.table_schema, shard_rows=config.shard_rows, on_shard=describe)


def add_ledger(attempt: Attempt, name: str, ledger: LedgerWriter) -> None:
    """Both of its files."""
    written = ledger.finish()
    attempt.add(halves_of(name), written.halves)
    attempt.add(name, written.rest)


class PlacesWriter:
    """Takes down where each kept row came from and went to."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt, self._path = attempt, attempt.scratch / PLACES_FILE
        self._writer = parquet.ParquetWriter(
            self._path,
            PLACES,
            compression="zstd",
            store_schema=False,
            use_dictionary=["split", "file"],
            column_encoding={"number": "DELTA_BINARY_PACKED"},  # row numbers go up by one, mostly
        )

    def add(self, codes: np.ndarray, files: np.ndarray, numbers: np.ndarray) -> None:
        """For the next rows: number of the split, of the file in the partition, and of the row there; each (n,)."""
        columns = [codes.astype(np.int8), files.astype(np.int32), numbers.astype(np.int64)]
        self._writer.write_table(pa.table([pa.array(column) for column in columns], schema=PLACES))

    def close(self) -> None:
        self._writer.close()

    def finish(self) -> None:
        self._writer.close()
        self._attempt.add(PLACES_FILE, self._path)
