"""The rows that training and validation draw from, by their numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch

from modelyard.token_data import Sequences


class Batch(NamedTuple):
    """Some rows: network input, encoded targets, and what a teacher sees where its inputs are not the same."""

    features: torch.Tensor
    targets: torch.Tensor
    teacher_features: torch.Tensor | None = None


class Rows(Protocol):
    """One split."""

    def __len__(self) -> int: ...

    def batch(self, numbers: torch.Tensor) -> Batch:
        """The rows with these numbers (n,) int64, on the CPU."""
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


class TokenSplit:
    """Sequences on disk: features and targets (n, t) int64."""

    def __init__(self, sequences: Sequences) -> None:
        self._sequences = sequences

    def __len__(self) -> int:
        return len(self._sequences)

    def batch(self, numbers: torch.Tensor) -> Batch:
        tokens, following = self._sequences.read(numbers.numpy())
        return Batch(torch.from_numpy(tokens), torch.from_numpy(following))
