"""Identity of rows, by value: what makes two rows the same, and which split a row belongs to."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import polars as pl

from modelyard.datasets import SPLITS
from modelyard.preprocess.sections import SplitConfig

# Two lanes of 64 bits: two different rows of a billion share both with probability 1e-21. Odd, from the digits of pi
# and e; fixed for ever, because the split of every row follows from them.
SEEDS = np.array([0x243F6A8885A308D3, 0xB7E151628AED2A6B], dtype=np.uint64)
FACTORS = np.array([0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93], dtype=np.uint64)
NULL_BITS = np.uint64(0x5BD1E9955BD1E995)
LONG_TEXT_BYTES = 2048  # beyond it the step through words costs more than a cryptographic hash for each text


def row_hashes(frame: pl.DataFrame, columns: Sequence[str]) -> np.ndarray:
    """A hash of 128 bits for each row, by the values of the named columns: (n, 2) uint64.

    Each value is reduced to 64 bits (a number to its own, a text to its hash) and folded into both lanes with the
    finaliser of splitmix64 (Steele, Lea & Flood, 2014). Nothing here depends on the version of a library.
    """
    lanes = np.empty((2, frame.height), dtype=np.uint64)
    lanes[:] = SEEDS[:, None]
    for name in columns:
        bits = _bits(frame[name])
        for lane in range(2):
            _fold(lanes[lane], bits[lane], FACTORS[lane])
    return lanes.T


def assign_by_hash(hashes: np.ndarray, fractions: SplitConfig) -> np.ndarray:
    """Number of each row's split in `SPLITS`, (n,), from hashes (n, 2).

    It depends on the row alone, so a row stays where it is while the data grows. The first lane is a uniform number
    in [0, 1).
    """
    return split_at(hashes[:, 0] / 2.0**64, fractions)


def split_at(shares: np.ndarray, fractions: SplitConfig) -> np.ndarray:
    """Number of the split for each number in [0, 1), (n,)."""
    edges = np.cumsum([getattr(fractions, split) for split in SPLITS])[:-1]
    return np.searchsorted(edges, shares, side="right").astype(np.int8)


def _bits(values: pl.Series) -> tuple[np.ndarray, np.ndarray]:
    """64 bits for each value, for each lane; texts differ between the lanes."""
    if values.dtype == pl.String:
        return _text_bits(values)
    nulls = values.is_null()
    plain = values.to_physical()
    plain = plain.cast(pl.Int64) if plain.dtype != pl.Float64 else plain
    bits = plain.fill_null(0).to_numpy().view(np.uint64)
    if nulls.any():
        bits = np.where(nulls.to_numpy(), NULL_BITS, bits)
    return bits, bits


def _text_bits(values: pl.Series) -> tuple[np.ndarray, np.ndarray]:
    """Hash of each text's UTF-8 bytes and length, eight bytes a step, all rows that are that long at once."""
    array = values.to_arrow(compat_level=pl.CompatLevel.oldest())
    _, starts, data = array.buffers()
    offsets = np.frombuffer(starts, dtype=np.int64)[array.offset : array.offset + len(array) + 1]
    body = np.zeros(int(offsets[-1]) + 8, dtype=np.uint8)  # a word may be read beyond the last text
    if data is not None:
        body[: offsets[-1]] = np.frombuffer(data, dtype=np.uint8)[: offsets[-1]]
    lengths = np.diff(offsets)
    first, second = (_hash_words(body, offsets[:-1], lengths, lane) for lane in range(2))
    nulls = values.is_null().to_numpy()
    first[nulls], second[nulls] = NULL_BITS, NULL_BITS
    return first, second


def _hash_words(body: np.ndarray, starts: np.ndarray, lengths: np.ndarray, lane: int) -> np.ndarray:
    words = np.ndarray(shape=(len(body) - 7,), dtype="<u8", buffer=body, strides=(1,))  # one at every byte
    hashes = lengths.astype(np.uint64) ^ SEEDS[1 - lane]
    active = np.flatnonzero((lengths > 0) & (lengths <= LONG_TEXT_BYTES))
    position = 0
    while len(active):
        rest = np.minimum(lengths[active] - position, 8).astype(np.uint64)
        word = words[starts[active] + position] << ((8 - rest) * 8)  # drops what follows the text
        part = hashes[active]
        _fold(part, word, FACTORS[lane])
        hashes[active] = part
        position += 8
        active = active[lengths[active] > position]
    for row in np.flatnonzero(lengths > LONG_TEXT_BYTES):
        text = body[starts[row] : starts[row] + lengths[row]]
        digest = hashlib.blake2b(text.tobytes(), digest_size=16).digest()
        hashes[row] = np.frombuffer(digest, dtype="<u8")[lane]
    return hashes


def _fold(hashes: np.ndarray, bits: np.ndarray, factor: np.uint64) -> None:
    """Mix ``bits`` (n,) into ``hashes`` (n,), in place; the order of folds matters."""
    hashes *= factor
    hashes += bits
    hashes ^= hashes >> np.uint64(30)
    hashes *= np.uint64(0xBF58476D1CE4E5B9)
    hashes ^= hashes >> np.uint64(27)
    hashes *= np.uint64(0x94D049BB133111EB)
    hashes ^= hashes >> np.uint64(31)
