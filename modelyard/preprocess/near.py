"""Rows whose text is nearly that of an earlier row, over any number of rows.

Each partition keeps the signatures of its rows (`SignatureWriter`). All of them together are looked at band by band
(locality-sensitive hashing, Indyk & Motwani, 1998): rows that agree in a band meet in a bucket on the local disk, and are
compared there by their whole signatures. A row is near an earlier one if the two agree in any band and their signatures
say so. Which rows those are depends on the rows and their order alone.

The local disk holds 256 bytes a row and one band (20 bytes a row) at a time, memory eight bytes a row and one bucket.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from modelyard.preprocess.duplicates import NUM_BUCKETS, LedgerWriter
from modelyard.preprocess.minhash import NOTHING, NUM_BINS, band_hashes, band_rows, signatures, similarity
from modelyard.preprocess.sections import NearConfig

SIGNATURES_FILE = "signatures.bin"
ROWS_AT_A_TIME = 2**16
# Rows of one band that differ from each other, beyond which nobody is compared with the rest of that band: a beginning
# that a million unlike texts share would else cost half a million million comparisons. Other bands still find them.
MOST_LEADERS = 256


class SignatureWriter:
    """Takes down the signature of every row that is kept."""

    def __init__(self, path: Path, config: NearConfig) -> None:
        self._config, self._path = config, path
        self._file = path.open("wb")

    def add(self, rows: pl.DataFrame) -> None:
        """The next rows, with the column of texts."""
        self._file.write(signatures(rows[self._config.column], self._config.shingle_bytes).astype("<u2").tobytes())

    def finish(self) -> Path:
        """One file: 128 little-endian uint16 a row."""
        self._file.close()
        return self._path

    def close(self) -> None:
        self._file.close()


@dataclass(frozen=True)
class Pairs:
    """Rows that are near an earlier one, in order of arrival; three columns of one length.

    Attributes:
        later: number of the row, over all partitions.
        earlier: number of the first row that it was found to be near.
        similarity: of the two, as the signatures estimate it.
    """

    later: np.ndarray
    earlier: np.ndarray
    similarity: np.ndarray


def near_pairs(path: Path, config: NearConfig, scratch: Path) -> Pairs:
    """Look at the signatures of all rows, one after the other in one file.

    Args:
        scratch: a folder that is not there yet, and is not afterwards.
    """
    num_rows = path.stat().st_size // (2 * NUM_BINS)
    if not num_rows:
        return Pairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))
    rows = np.memmap(path, dtype="<u2", mode="r", shape=(num_rows, NUM_BINS))
    size = band_rows(config.threshold)
    first: np.ndarray = np.full(num_rows, num_rows, dtype=np.uint32)
    share: np.ndarray = np.zeros(num_rows, dtype=np.float32)
    for band in range(NUM_BINS // size):
        for later, earlier, alike in _of_band(rows, band, size, config.threshold, scratch / f"band-{band}"):
            is_first = earlier < first[later]
            first[later[is_first]], share[later[is_first]] = earlier[is_first], alike[is_first]
    scratch.rmdir()
    later = np.flatnonzero(first < num_rows)
    return Pairs(later, first[later].astype(np.int64), share[later])


def _of_band(
    rows: np.ndarray, band: int, size: int, threshold: float, folder: Path
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    writer = LedgerWriter(folder)
    for start in range(0, len(rows), ROWS_AT_A_TIME):
        some = np.asarray(rows[start : start + ROWS_AT_A_TIME])
        spoken = np.flatnonzero((some != NOTHING).any(axis=1))
        writer.add(band_hashes(some[spoken], band, size), spoken + start)
    ledger = writer.finish()
    for number in range(NUM_BUCKETS):
        yield from _of_bucket(rows, ledger.bucket(number), threshold)
    for path in (ledger.halves, ledger.rest):
        path.unlink()
    folder.rmdir()


def _of_bucket(
    rows: np.ndarray, entries: np.ndarray, threshold: float
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """In each group of rows with one band: the first leads; who is near it is found, who is not goes on to the next
    round, where the first of those leads. All groups at once."""
    order = np.lexsort((entries["tag"], entries["low"], entries["high"]))
    ordered = entries[order]
    begins = np.ones(len(ordered), dtype=bool)
    begins[1:] = (ordered["high"][1:] != ordered["high"][:-1]) | (ordered["low"][1:] != ordered["low"][:-1])
    groups, tags = np.cumsum(begins), ordered["tag"].astype(np.int64)
    for _ in range(MOST_LEADERS):
        leads = np.ones(len(groups), dtype=bool)
        leads[1:] = groups[1:] != groups[:-1]
        leaders = tags[leads][np.cumsum(leads) - 1]
        follow = np.flatnonzero(~leads)
        if not len(follow):
            return
        alike = _similarities(rows, tags[follow], leaders[follow])
        near = alike >= threshold
        yield tags[follow[near]], leaders[follow[near]], alike[near]
        groups, tags = groups[follow[~near]], tags[follow[~near]]


def _similarities(rows: np.ndarray, ones: np.ndarray, others: np.ndarray) -> np.ndarray:
    found = np.empty(len(ones))
    for start in range(0, len(ones), ROWS_AT_A_TIME):
        part = slice(start, start + ROWS_AT_A_TIME)
        found[part] = similarity(rows[ones[part]], rows[others[part]])
    return found
