"""Rows to Parquet files whose bytes follow from the rows alone, however the rows arrived."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import polars as pl
import pyarrow as pa
from pyarrow import parquet

SHARD_BYTES = 32 * 2**20  # of a shard's rows in memory: three splits collect one each while others are being written
PARALLEL_SHARDS = 2
LOOKED_AT_ROWS = 4096


class ShardFolder:
    """Where shards go: two are encoded and uploaded while the next one fills.

    Args:
        scratch: where a file is written before it is handed on.
        publish: takes a logical name and the file; called from threads.
    """

    def __init__(self, scratch: Path, publish: Callable[[str, Path], None]) -> None:
        self._scratch, self._publish = scratch, publish
        self._pool = ThreadPoolExecutor(PARALLEL_SHARDS)
        self._pending: deque[Future[None]] = deque()

    def write(self, name: str, table: pa.Table) -> None:
        """Take a table; waits while as many as may are under way. Raises what an earlier one met."""
        while len(self._pending) >= PARALLEL_SHARDS:
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(self._write, name, table))

    def close(self) -> None:
        """Wait for every file."""
        while self._pending:
            self._pending.popleft().result()

    def abandon(self) -> None:
        """Begin nothing more, and let go of the threads."""
        self._pool.shutdown(cancel_futures=True)

    def _write(self, name: str, table: pa.Table) -> None:
        path = self._scratch / name.replace("/", "-")
        write_table(table, path)
        self._publish(name, path)
        path.unlink()


class ShardWriter:
    """Collects rows and hands on a file for every ``shard_rows`` of them.

    Args:
        folder: where the files go.
        name: logical folder of the files, ``train``.
        schema: Arrow schema of the files.
        shard_rows: rows per file; fewer where a row is wide, so that a file stays near 32 MB in memory.
        on_shard: sees the rows of each file; their cut depends on the rows alone, not on the chunks they came in.
    """

    def __init__(
        self,
        folder: ShardFolder,
        name: str,
        schema: pa.Schema,
        *,
        shard_rows: int,
        on_shard: Callable[[pl.DataFrame], None] | None = None,
    ) -> None:
        self._folder, self._name, self._schema, self._on_shard = folder, name, schema, on_shard
        self._shard_rows = max(1, min(shard_rows, SHARD_BYTES // (8 * len(schema))))
        self._waiting: list[pl.DataFrame] = []
        self._num_waiting = 0
        self._num_shards = 0
        self.num_rows = 0

    def add(self, rows: pl.DataFrame) -> None:
        """Take rows in; write what makes full files."""
        self.num_rows += rows.height
        while rows.height:
            part = rows.slice(0, self._shard_rows - self._num_waiting)
            rows = rows.slice(part.height)
            self._waiting.append(part)
            self._num_waiting += part.height
            if self._num_waiting == self._shard_rows:
                self._flush()

    def close(self) -> None:
        """Hand on what is left."""
        if self._num_waiting:
            self._flush()

    def _flush(self) -> None:
        shard = pl.concat(self._waiting)
        self._waiting, self._num_waiting = [], 0
        table = shard.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(self._schema)
        self._folder.write(f"{self._name}/{self._num_shards:06d}.parquet", table)
        self._num_shards += 1
        if self._on_shard:
            self._on_shard(shard)


def write_table(table: pa.Table, path: Path) -> None:
    """Parquet without what names the writer's libraries, so that the same rows are the same bytes."""
    plain = table.replace_schema_metadata(None).combine_chunks()
    parquet.write_table(
        plain,
        path,
        compression="zstd",
        store_schema=False,
        row_group_size=max(len(plain), 1),
        use_dictionary=repetitive(plain),
    )


def repetitive(table: pa.Table) -> list[str]:
    """Columns whose values repeat, by a look at the first rows: a dictionary makes only these smaller.

    Of the others the writer would build one until it is full, and begin anew without: of a shard of numbers that took
    two thirds of the time, and a third more bytes.
    """
    head = table.slice(0, LOOKED_AT_ROWS)
    return [name for name in head.column_names if len(head[name].unique()) <= len(head) / 2]
