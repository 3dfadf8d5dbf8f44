"""Identity of rows, by value: what makes two rows the same, and which split a row belongs to."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pandas as pd

from modelyard.datasets import SPLITS
from modelyard.preprocess.config import SplitFractions
from modelyard.preprocess.schema import Plan

DIGEST_BYTES = 16  # two different rows of a billion share one with probability 1e-21


def row_digests(frame: pd.DataFrame, plan: Plan) -> list[bytes]:
    """Digest of each whole row: its feature values, target and identity."""
    values = np.ascontiguousarray(frame[plan.features].to_numpy(), dtype="<f8")
    texts = [frame[column].astype(str).tolist() for column in [plan.target, *plan.extra]]
    return [_digest(row.tobytes(), *rest) for row, *rest in zip(values, *texts, strict=True)]


def identity_digests(frame: pd.DataFrame, plan: Plan, whole: list[bytes]) -> list[bytes]:
    """Digest of what decides each row's split: its identity columns, or the whole row where there are none."""
    if not plan.identity:
        return whole
    # A feature is float64 whatever the file's type was, so its text does not depend on that either.
    columns = [frame[column].astype(str).tolist() for column in plan.identity]
    return [_digest(b"", *texts) for texts in zip(*columns, strict=True)]


def assign_splits(digests: Sequence[bytes], fractions: SplitFractions) -> np.ndarray:
    """Number of each row's split in `SPLITS`, (n,).

    It depends on the row alone, so a row stays where it is while the data grows. The first 8 bytes of the digest
    are a uniform number in [0, 1).
    """
    numbers = np.frombuffer(b"".join(digests), dtype=">u8")[:: DIGEST_BYTES // 8]
    edges = np.cumsum([getattr(fractions, split) for split in SPLITS])[:-1]
    return np.searchsorted(edges, numbers / 2.0**64, side="right")


class SeenRows:
    """The digests of every row so far."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def fresh(self, digests: Sequence[bytes]) -> np.ndarray:
        """Mask (n,) of rows that did not occur before, in earlier calls or earlier in this one; remembers them."""
        mask = np.empty(len(digests), dtype=bool)
        for number, digest in enumerate(digests):
            before = len(self._seen)
            self._seen.add(digest)
            mask[number] = len(self._seen) > before
        return mask


def _digest(head: bytes, *texts: str) -> bytes:
    hashed = hashlib.blake2b(head, digest_size=DIGEST_BYTES)
    for text in texts:
        body = text.encode()
        # The length keeps ("ab", "c") apart from ("a", "bc").
        hashed.update(len(body).to_bytes(8, "little") + body)
    return hashed.digest()
