"""Signatures of texts: two texts share as many of their 128 numbers as their shingles overlap. Pure arithmetic.

A text is the set of its shingles, windows of so many bytes after runs of white space became one space and letters lower
case. Of each shingle one hash is taken; its first bits choose one of 128 bins, and a bin keeps the smallest (one
permutation hashing, Li, Owen & Zhang, NeurIPS 2012, with the optimal densification of Shrivastava, ICML 2017, for bins
that stayed empty). The share of equal bins estimates the Jaccard similarity of the two sets (Broder, 1997), with a
deviation of at most 0.044. Nothing here depends on the version of a library, or on how rows were cut into batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import numpy as np
import polars as pl

from modelyard.preprocess.clean import normalised

BIN_BITS = 7
NUM_BINS = 2**BIN_BITS
NOTHING = 0xFFFF  # in every bin of a text without a byte
EMPTY = np.uint32(0xFFFFFFFF)
WORD_BYTES = 8
CHUNK_BYTES = 2**19  # of text at a time; each byte begins a shingle, which takes some 60 bytes here
FACTORS = np.array([0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93], dtype=np.uint64)
MOST_MISSED = 0.01


def signatures(texts: pl.Series, shingle_bytes: int) -> np.ndarray:
    """(n, 128) uint16, `NOTHING` throughout for a text that is null or empty.

    Args:
        texts: (n,) strings.
        shingle_bytes: 1 to 16, of UTF-8; a shorter text is one shingle.
    """
    plain = normalised(texts, ["whitespace", "lower"]).fill_null("")
    array = plain.to_arrow(compat_level=pl.CompatLevel.oldest())
    _, starts, data = array.buffers()
    offsets = np.frombuffer(starts, dtype=np.int64)[array.offset : array.offset + len(array) + 1]
    # A word may be read beyond the last text.
    body = np.zeros(int(offsets[-1]) + 2 * WORD_BYTES, dtype=np.uint8)
    if data is not None:
        body[: offsets[-1]] = np.frombuffer(data, dtype=np.uint8)[: offsets[-1]]
    found = np.full((len(texts), NUM_BINS), NOTHING, dtype=np.uint16)
    for first, last in _chunks(offsets):
        bins = _bins(body, offsets[first:last], np.diff(offsets[first : last + 1]), shingle_bytes)
        found[first:last] = _densified(bins)
    return found


def band_rows(threshold: float) -> int:
    """Bins of a band: as many as leave 1 % or less of the pairs at the threshold without an equal band (Leskovec,
    Rajaraman & Ullman, Mining of Massive Datasets, section 3.4)."""
    fitting = [rows for rows in (1, 2, 4, 8, 16) if (1 - threshold**rows) ** (NUM_BINS // rows) <= MOST_MISSED]
    return max(fitting, default=1)


def band_hashes(rows: np.ndarray, band: int, size: int) -> np.ndarray:
    """Of each signature (n, 128) the bins of one band as 128 bits: (n, 2) uint64."""
    values = rows[:, band * size : (band + 1) * size].astype(np.uint64)
    lanes = np.full((len(rows), 2), np.uint64(band))
    for column in range(size):
        for lane in range(2):
            lanes[:, lane] = _mixed((lanes[:, lane] + values[:, column]) * FACTORS[lane])
    return lanes


def similarity(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Of signatures (n, 128) pair by pair: (n,), the estimated share of shingles that both texts have."""
    return (one == other).mean(axis=1)


def _chunks(offsets: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges of texts that have so many bytes together, or are one text."""
    first, num_texts = 0, len(offsets) - 1
    while first < num_texts:
        last = int(np.searchsorted(offsets, offsets[first] + CHUNK_BYTES, side="right")) - 1
        last = min(max(last, first + 1), num_texts)
        yield first, last
        first = last


def _bins(body: np.ndarray, starts: np.ndarray, lengths: np.ndarray, shingle_bytes: int) -> np.ndarray:
    """The smallest hash of each bin, (n, 128) uint32; `EMPTY` where no shingle fell."""
    bins = np.full(len(starts) * NUM_BINS, EMPTY)
    sizes = np.minimum(lengths, shingle_bytes)
    counts = np.where(lengths > 0, lengths - sizes + 1, 0)
    owners = np.repeat(np.arange(len(starts)), counts)
    before = np.cumsum(counts) - counts
    places = starts[owners] + np.arange(len(owners)) - before[owners]
    hashes = _shingle_hashes(body, places, sizes[owners])
    where = owners * NUM_BINS + (hashes >> np.uint64(64 - BIN_BITS)).astype(np.int64)
    # The largest value is the sign of an empty bin: one in four billion hashes moves by one.
    np.minimum.at(bins, where, np.minimum(hashes.astype(np.uint32), EMPTY - np.uint32(1)))
    return bins.reshape(-1, NUM_BINS)


def _shingle_hashes(body: np.ndarray, places: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """64 bits for each window of ``sizes`` bytes from ``places`` on."""
    words = np.ndarray(shape=(len(body) - WORD_BYTES + 1,), dtype="<u8", buffer=body, strides=(1,))
    width = np.minimum(sizes, WORD_BYTES).astype(np.uint64)
    # Shifted to the left: what follows the window falls off.
    hashes = _mixed((words[places] << ((np.uint64(WORD_BYTES) - width) * np.uint64(8))) * FACTORS[0])
    # Of longer windows the last word too, which overlaps the first.
    tails = np.where(sizes > WORD_BYTES, words[places + np.maximum(sizes - WORD_BYTES, 0)], np.uint64(0))
    return _mixed((hashes + tails) * FACTORS[1])


def _densified(bins: np.ndarray) -> np.ndarray:
    """16 bits of each bin (n, 128); an empty one takes those of another, found on a way that is the same for all texts."""
    found = bins.astype(np.uint16)
    rows, columns = np.nonzero((bins == EMPTY) & (bins != EMPTY).any(axis=1)[:, None])
    for attempt in count(1):
        if not len(rows):
            break
        step = _mixed((columns.astype(np.uint64) + np.uint64(attempt) * np.uint64(NUM_BINS)) * FACTORS[1])
        others = (step >> np.uint64(64 - BIN_BITS)).astype(np.int64)
        full = bins[rows, others] != EMPTY
        found[rows[full], columns[full]] = bins[rows[full], others[full]].astype(np.uint16)
        rows, columns = rows[~full], columns[~full]
    found[(bins == EMPTY).all(axis=1)] = NOTHING
    return found


def _mixed(values: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea & Flood, 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
