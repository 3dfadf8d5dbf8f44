"""The rows that training and validation draw from, by their numbers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch

from modelyard.errors import DataError
from modelyard.token_data import Sequences
from modelyard.transform.text import padded


class Batch(NamedTuple):
    """Some rows: network input, encoded targets, and what a teacher sees where its inputs are not the same."""

    features: torch.Tensor
    targets: torch.Tensor
    teacher_features: torch.Tensor | None = None


class Rows(Protocol):
    """One split."""

    def __len__(self) -> int: ...

    def batch(self, numbers: torch.Tensor) -> Batch:
        """The rows with these numbers (n,) int64, on the CPU. Where a split has ``varies_by_epoch``, a number that is larger
        by the length of the split is the same row in the next epoch."""
        ...


@runtime_checkable
class TokenRows(Protocol):
    """A split whose rows are tokens."""

    def num_tokens(self, numbers: torch.Tensor) -> int:
        """Tokens of the rows with these numbers (n,) int64 together, without what fills up a batch."""
        ...


@dataclass(frozen=True, kw_only=True)
class Split:
    """Rows in memory: features (n, width) float32, targets (n,) or (n, k)."""

    features: torch.Tensor
    targets: torch.Tensor
    teacher_features: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def batch(self, numbers: torch.Tensor) -> Batch:
        seen = None if self.teacher_features is None else self.teacher_features[numbers]
        return Batch(self.features[numbers], self.targets[numbers], seen)

    @classmethod
    def of(cls, features: np.ndarray, targets: np.ndarray) -> Split:
        return cls(features=torch.from_numpy(features), targets=torch.from_numpy(targets))


class TextSplit:
    """Texts as tokens in memory, without what fills them up: features (n, t) int64, as wide as the longest of a batch.

    Args:
        parts: network input (n, t) with its encoded targets (n,), any number of times.
        fixed: tokens that every batch is wide; None: as many as its longest text has.
    """

    def __init__(self, parts: Iterable[tuple[np.ndarray, np.ndarray]], fixed: int | None = None) -> None:
        tokens, lengths, targets = [np.empty(0, np.int32)], [np.zeros(1, np.int64)], []
        for rows, encoded in parts:
            here = rows >= 0
            tokens.append(rows[here].astype(np.int32))
            lengths.append(here.sum(axis=1))
            targets.append(encoded)
        if not targets:
            raise DataError("a split is empty; raise its share in preprocess.split, or add data")
        self._tokens, self._ends = np.concatenate(tokens), np.cumsum(np.concatenate(lengths))
        self._targets, self._fixed = torch.from_numpy(np.concatenate(targets)), fixed

    def __len__(self) -> int:
        return len(self._targets)

    def batch(self, numbers: torch.Tensor) -> Batch:
        rows = padded([self._tokens[self._ends[at] : self._ends[at + 1]] for at in numbers.tolist()], self._fixed)
        return Batch(torch.from_numpy(rows), self._targets[numbers])

    def num_tokens(self, numbers: torch.Tensor) -> int:
        at = numbers.numpy()
        return int((self._ends[at + 1] - self._ends[at]).sum())


class TokenSplit:
    """Sequences on disk: features and targets (n, t) int64."""

    def __init__(self, sequences: Sequences) -> None:
        self._sequences = sequences

    def __len__(self) -> int:
        return len(self._sequences)

    def batch(self, numbers: torch.Tensor) -> Batch:
        tokens, following = self._sequences.read(numbers.numpy())
        return Batch(torch.from_numpy(tokens), torch.from_numpy(following))

    def num_tokens(self, numbers: torch.Tensor) -> int:
        return len(numbers) * self._sequences.length
