"""Clean rows on the local disk, between the pass that reads the sources and the one that writes the data set.

What is known only when every row was seen (duplicates, limits of outliers) needs a second look at each row; the disk
holds them meanwhile, so memory does not grow with the data.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
from pyarrow import ipc

NUMBER, SHARE = "\x01number", "\x01share"  # no user's column is called so


@dataclass(frozen=True)
class Chunk:
    """Rows of one file: their values, their numbers in it (n,), and what decides their split, in [0, 1), (n,)."""

    file: str
    rows: pl.DataFrame
    numbers: np.ndarray
    shares: np.ndarray


class Spool:
    """Chunks, written once and then read any number of times, in the same order."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._files: list[tuple[str, Path]] = []
        self._writer: ipc.RecordBatchStreamWriter | None = None
        self.num_rows = 0

    def add(self, file: str, rows: pl.DataFrame, numbers: np.ndarray, shares: np.ndarray) -> None:
        table = rows.with_columns(pl.Series(NUMBER, numbers), pl.Series(SHARE, shares)).to_arrow(
            compat_level=pl.CompatLevel.oldest()
        )
        if self._writer is None or self._files[-1][0] != file:
            self.close()
            self._files.append((file, self._folder / f"{len(self._files):06d}"))
            options = ipc.IpcWriteOptions(compression="lz4")
            self._writer = ipc.new_stream(str(self._files[-1][1]), table.schema, options=options)
        self._writer.write_table(table)
        self.num_rows += rows.height

    def close(self) -> None:
        """No more of the file that was added last."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def chunks(self) -> Iterator[Chunk]:
        self.close()
        for file, path in self._files:
            with pa.OSFile(str(path)) as source, ipc.open_stream(source) as reader:
                for part in reader:
                    frame = pl.DataFrame(pl.from_arrow(part))
                    numbers, shares = frame[NUMBER].to_numpy(), frame[SHARE].to_numpy()
                    yield Chunk(file, frame.drop(NUMBER, SHARE), numbers, shares)
