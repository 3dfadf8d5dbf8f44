"""Exact duplicates over any number of rows in bounded memory: hashes lie on disk by some of their bits.

Equal hashes meet in the same bucket, so each bucket is looked at alone (a Grace partition, Kitsuregawa et al. 1983).
Each partition of a data set has a ledger of its own, which is kept; all of them together tell which rows repeat one
that arrived earlier. With 64 buckets and 20 bytes a row, a billion rows need 320 MB at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

BITS = 6
NUM_BUCKETS = 2**BITS
WAITING_ROWS = 2**20  # of a partition; smaller ones touch the disk once
RECENT_ROWS = 2**20
FILTER_BITS = 22
ENTRY = np.dtype([("high", "<u8"), ("low", "<u8"), ("tag", "<u4")])
HALF_BYTES = 8
PARALLEL_BUCKETS = 2


class LedgerWriter:
    """Takes down the hash of every row, bucket by bucket, in memory that does not grow.

    Args:
        folder: an empty folder of its own, removed by its owner.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._num_rows = self._num_waiting = 0
        self._waiting: list[np.ndarray] = []
        self._counts = np.zeros(NUM_BUCKETS, dtype=np.int64)
        self._files = [folder / f"{number:02d}" for number in range(NUM_BUCKETS)]
        self._ledger = Ledger.in_folder(folder, "packed")

    def add(self, hashes: np.ndarray, tags: np.ndarray | None = None) -> None:
        """Take in the next rows: hashes (n, 2) uint64, and a number to keep with each if that is not its position."""
        positions = np.arange(self._num_rows, self._num_rows + len(hashes))
        self._num_rows += len(hashes)
        entries: np.ndarray = np.empty(len(hashes), dtype=ENTRY)
        entries["high"], entries["low"] = hashes[:, 0], hashes[:, 1]
        entries["tag"] = positions if tags is None else tags
        self._waiting.append(entries)
        self._num_waiting += len(entries)
        if self._num_waiting > WAITING_ROWS:
            for number, bucket in self._buckets():
                with self._files[number].open("ab") as file:
                    file.write(bucket)

    def _buckets(self) -> Iterator[tuple[int, bytes]]:
        """What waits, by bucket; nothing waits then."""
        entries = np.concatenate([np.empty(0, dtype=ENTRY), *self._waiting])
        self._waiting, self._num_waiting = [], 0
        # Not the leading bits: those decide the split, and every split should meet every bucket.
        where = (entries["low"] >> np.uint64(64 - BITS)).astype(np.uint8)
        entries = entries[np.argsort(where, kind="stable")]
        counts = np.bincount(where, minlength=NUM_BUCKETS)
        self._counts += counts
        edges = np.concatenate([[0], np.cumsum(counts)])
        for number in range(NUM_BUCKETS):
            yield number, entries[edges[number] : edges[number + 1]].tobytes()

    def finish(self) -> Ledger:
        """Two files, both bucket by bucket: first halves behind the number of entries in each bucket (64 little-endian
        int64); second halves, then tags.
        """
        rest = dict(self._buckets())
        with self._ledger.halves.open("wb") as halves, self._ledger.rest.open("wb") as others:
            halves.write(self._counts.astype("<i8").tobytes())
            for number, path in enumerate(self._files):
                body = rest.pop(number)
                if path.exists():
                    body = path.read_bytes() + body
                    path.unlink()
                entries: np.ndarray = np.frombuffer(body, dtype=ENTRY)
                halves.write(entries["high"].tobytes())
                others.write(entries["low"].tobytes())
                others.write(entries["tag"].tobytes())
        return self._ledger


class RecentRows:
    """Finds rows that repeat one of the last million, as they come.

    It spares the partition a second writing where duplicates lie close to each other, as they mostly do. What it
    misses is found when all ledgers are looked at.

    Of 22 bits of each hash it is known which batch had them last (a filter after Bloom, 1970, with one function): only
    rows whose bits came lately, one in five of those that are new, are looked for in the sorted hashes themselves.
    """

    def __init__(self) -> None:
        self._runs: deque[_Run] = deque()
        self._num_rows = self._num_batches = 0
        self._last_batch = np.zeros(2**FILTER_BITS, dtype=np.uint32)

    def repeated(self, hashes: np.ndarray) -> np.ndarray:
        """Mask (n,) of the next rows."""
        high, low = (np.ascontiguousarray(hashes[:, lane]) for lane in range(2))
        order = np.argsort(high)
        gone = _repeated_within(high, low, order)
        slots = (low % np.uint64(2**FILTER_BITS)).astype(np.intp)
        oldest = self._num_batches - len(self._runs)
        known = order[self._last_batch[slots[order]] > oldest]  # in order, because that is quicker to look for
        known_high, known_low = high[known], low[known]
        for run in self._runs if len(known) else ():
            gone[known] |= run.has(known_high, known_low)
        self._num_batches += 1
        self._last_batch[slots] = self._num_batches
        kept = order[~gone[order]]
        self._runs.append(_Run(high[kept], low[kept]))
        self._num_rows += len(kept)
        while self._num_rows > RECENT_ROWS:
            self._num_rows -= len(self._runs.popleft().high)
        return gone


@dataclass(frozen=True)
class _Run:
    """Hashes of a batch, both lanes (n,), in order of the first."""

    high: np.ndarray
    low: np.ndarray

    def has(self, high: np.ndarray, low: np.ndarray) -> np.ndarray:
        """Mask (m,) of the hashes that are here."""
        if not len(self.high):
            return np.zeros(len(high), dtype=bool)
        at = np.minimum(np.searchsorted(self.high, high), len(self.high) - 1)
        return (self.high[at] == high) & (self.low[at] == low)


def _repeated_within(high: np.ndarray, low: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Mask (n,) of the hashes that an earlier one of the same batch equals; ``order`` sorts them by ``high``."""
    gone = np.zeros(len(high), dtype=bool)
    ordered = high[order]
    several = np.zeros(len(high), dtype=bool)
    several[1:] = ordered[1:] == ordered[:-1]
    several[:-1] |= several[1:]
    alike = order[several]  # few: only these are put into order of arrival
    alike = alike[np.lexsort((alike, low[alike], high[alike]))]
    before, after = alike[:-1], alike[1:]
    gone[after[(high[after] == high[before]) & (low[after] == low[before])]] = True
    return gone


@dataclass(frozen=True)
class Ledger:
    """The files of a `LedgerWriter`, read a bucket at a time.

    Attributes:
        halves: with the first halves of hashes: two fifths of the bytes, and enough to tell that nothing repeats.
        rest: with all else; ``fetch`` brings it once it is asked for.
    """

    halves: Path
    rest: Path
    fetch: Callable[[], object] | None = None

    @classmethod
    def in_folder(cls, folder: Path, name: str, fetch: Callable[[], object] | None = None) -> Ledger:
        return cls(folder / halves_of(name), folder / name, fetch)

    def bucket(self, number: int) -> np.ndarray:
        """Entries (n,) of one bucket, in order of arrival."""
        if self.fetch and not self.rest.exists():
            self.fetch()
        counts, high = self._read(number)
        entries: np.ndarray = np.empty(len(high), dtype=ENTRY)
        entries["high"] = high
        with self.rest.open("rb") as file:
            file.seek(int(counts[:number].sum()) * (ENTRY.itemsize - HALF_BYTES))
            entries["low"] = np.fromfile(file, dtype="<u8", count=len(high))
            entries["tag"] = np.fromfile(file, dtype="<u4", count=len(high))
        return entries

    def first_halves(self, number: int) -> np.ndarray:
        """Of the hashes in a bucket (n,), in order of arrival."""
        return self._read(number)[1]

    def _read(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        with self.halves.open("rb") as file:
            counts = np.frombuffer(file.read(8 * NUM_BUCKETS), dtype="<i8")
            file.seek(int(counts[:number].sum()) * HALF_BYTES, 1)
            return counts, np.fromfile(file, dtype="<u8", count=int(counts[number]))


def halves_of(name: str) -> str:
    """What the file with the first halves is called, beside a ledger of that name."""
    return f"{name}-halves"


def repeated(ledgers: Sequence[Ledger]) -> list[np.ndarray]:
    """For each ledger, in order of arrival: positions (n,) uint32, ascending, of rows that an earlier row equals."""
    found: list[list[np.ndarray]] = [[] for _ in ledgers]
    for entries in _shared(ledgers):
        # Rows stand in order of arrival, so the first of equal ones is the earliest.
        later = entries.filter(~pl.struct("high", "low").is_first_distinct())
        for (number,), rows in later.group_by("ledger"):
            found[int(str(number))].append(rows["tag"].to_numpy())
    return [np.sort(np.concatenate([np.empty(0, dtype=np.uint32), *parts])) for parts in found]


def num_in_several(ledgers: Sequence[Ledger]) -> int:
    """How many hashes there are with more than one tag."""
    return sum(
        entries.group_by("high", "low").agg(pl.col("tag").n_unique()).filter(pl.col("tag") > 1).height
        for entries in _shared(ledgers)
    )


def _shared(ledgers: Sequence[Ledger]) -> Iterator[pl.DataFrame]:
    """Bucket by bucket, the entries of all ledgers that share their first half with another: few, as a rule."""
    with ThreadPoolExecutor(PARALLEL_BUCKETS) as pool:
        for first in range(0, NUM_BUCKETS, PARALLEL_BUCKETS):  # so that no more lie in memory
            numbers = range(first, min(first + PARALLEL_BUCKETS, NUM_BUCKETS))
            for entries in pool.map(partial(_shared_of_bucket, ledgers), numbers):
                if entries is not None:
                    yield entries


def _shared_of_bucket(ledgers: Sequence[Ledger], number: int) -> pl.DataFrame | None:
    """None where no first half occurs twice."""
    halves = [ledger.first_halves(number) for ledger in ledgers]
    ordered = np.sort(np.concatenate(halves))
    several = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if not len(several):
        return None
    parts = []
    for owner, ledger in enumerate(ledgers):
        here = np.isin(halves[owner], several)
        if here.any():
            entries = ledger.bucket(number)[here]
            columns = {field: np.ascontiguousarray(entries[field]) for field in ENTRY.names or ()}
            parts.append(pl.DataFrame(columns).with_columns(pl.lit(owner, pl.Int64).alias("ledger")))
    return pl.concat(parts)
