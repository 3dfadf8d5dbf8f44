"""Rows to Parquet files whose bytes follow from the rows alone, however the rows arrived."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
from pyarrow import parquet


class ShardWriter:
    """Collects rows and hands on a file for every ``shard_rows`` of them.

    Args:
        folder: logical folder of the files, ``train``.
        schema: Arrow schema of the files.
        shard_rows: rows per file; the last one may hold fewer.
        scratch: where a file is written before it is handed on.
        publish: takes a logical name and the file.
        on_shard: sees the rows of each file; their cut depends on the rows alone, not on the batches they came in.
    """

    def __init__(
        self,
        folder: str,
        schema: pa.Schema,
        *,
        shard_rows: int,
        scratch: Path,
        publish: Callable[[str, Path], None],
        on_shard: Callable[[pd.DataFrame], None] | None = None,
    ) -> None:
        self._folder, self._schema, self._shard_rows = folder, schema, shard_rows
        self._scratch, self._publish, self._on_shard = scratch, publish, on_shard
        self._waiting: list[pd.DataFrame] = []
        self._num_waiting = 0
        self._num_shards = 0
        self.num_rows = 0

    def add(self, frame: pd.DataFrame) -> None:
        """Take rows in; write what makes full files."""
        if frame.empty:
            return
        self._waiting.append(frame)
        self._num_waiting += len(frame)
        self.num_rows += len(frame)
        while self._num_waiting >= self._shard_rows:
            self._flush()

    def close(self) -> None:
        """Write what is left."""
        if self._num_waiting:
            self._flush()

    def _flush(self) -> None:
        rows = pd.concat(self._waiting, ignore_index=True)
        shard, rest = rows.iloc[: self._shard_rows], rows.iloc[self._shard_rows :]
        self._waiting, self._num_waiting = [rest] if len(rest) else [], len(rest)
        name = f"{self._folder}/{self._num_shards:06d}.parquet"
        path = self._scratch / name.replace("/", "-")
        write_table(pa.Table.from_pandas(shard, self._schema, preserve_index=False), path)
        self._publish(name, path)
        path.unlink()
        self._num_shards += 1
        if self._on_shard:
            self._on_shard(shard)


def write_table(table: pa.Table, path: Path) -> None:
    """Parquet without what names the writer's libraries, so that the same rows are the same bytes."""
    plain = table.replace_schema_metadata(None).combine_chunks()
    parquet.write_table(plain, path, compression="zstd", store_schema=False, row_group_size=max(len(plain), 1))
