"""Exact duplicates over any number of rows in bounded memory: hashes go to disk by their leading bits.

Equal hashes meet in the same file, so each file is looked at alone (a Grace partition, Kitsuregawa et al. 1983). With
64 files and 24 bytes a row, a billion rows need 375 MB at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

BITS = 6
NUM_FILES = 2**BITS


class HashLedger:
    """Remembers the hash of every row, on disk, and tells later which rows repeat an earlier one.

    Args:
        folder: an empty folder of its own, removed by its owner.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._num_rows = 0
        self._files = [folder / f"{number:02d}" for number in range(NUM_FILES)]

    def add(self, hashes: np.ndarray, tags: np.ndarray | None = None) -> None:
        """Take in the next rows: hashes (n, 2) uint64, and a number to keep with each if that is not its position."""
        positions = np.arange(self._num_rows, self._num_rows + len(hashes), dtype=np.uint64)
        self._num_rows += len(hashes)
        entries = np.column_stack([hashes, positions if tags is None else tags.astype(np.uint64)])
        # Not the leading bits: those decide the split, and every split should meet every file.
        where = (hashes[:, 1] >> np.uint64(64 - BITS)).astype(np.uint8)
        entries = entries[np.argsort(where, kind="stable")]
        edges = np.concatenate([[0], np.cumsum(np.bincount(where, minlength=NUM_FILES))])
        for number in np.flatnonzero(np.diff(edges)):
            with self._files[number].open("ab") as file:
                file.write(entries[edges[number] : edges[number + 1]].tobytes())

    def repeated(self) -> np.ndarray:
        """Mask (rows,) of those whose hash an earlier row has; it lies on disk and is read as needed."""
        if not self._num_rows:
            return np.zeros(0, dtype=bool)
        mask = np.memmap(self._folder / "repeated", dtype=bool, mode="w+", shape=(self._num_rows,))
        mask[:] = True
        for entries in self._parts():
            # Rows stand in order of arrival, so the first of equal ones is the earliest.
            first = entries.unique(["high", "low"], keep="first", maintain_order=True)
            mask[first["tag"].to_numpy()] = False
        return mask

    def num_in_several(self) -> int:
        """How many hashes were added with more than one tag."""
        return sum(
            entries.group_by("high", "low").agg(pl.col("tag").n_unique()).filter(pl.col("tag") > 1).height
            for entries in self._parts()
        )

    def _parts(self) -> Iterator[pl.DataFrame]:
        for path in self._files:
            if path.exists():
                entries = np.fromfile(path, dtype=np.uint64).reshape(-1, 3)
                yield pl.DataFrame({"high": entries[:, 0], "low": entries[:, 1], "tag": entries[:, 2]})
