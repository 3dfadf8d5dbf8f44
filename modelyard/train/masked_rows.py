"""Rows of texts some of whose tokens are hidden, other ones in each epoch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from modelyard.errors import DataError
from modelyard.masking import FIXED, TRAINING, Masker
from modelyard.task_kinds import NO_TOKEN
from modelyard.train.rows import Batch
from modelyard.transform.text import padded


class MaskedSplit:
    """Pieces of texts as tokens in memory: features and targets (n, t) int64, as wide as the longest of a batch.

    A row's number says its epoch too: number modulo the length is the row, the quotient the epoch. So whoever asks for
    rows needs to know nothing of epochs, and what is hidden follows from the number alone.

    Args:
        pieces: tokens of some pieces, any number of times.
        is_fixed: the same tokens are hidden whichever the epoch.
        fixed: tokens that every batch is wide; None: as many as its longest text has.
    """

    def __init__(
        self, pieces: Iterable[Sequence[Sequence[int]]], masker: Masker, *, is_fixed: bool, fixed: int | None = None
    ) -> None:
        self._rows = [np.array(piece, dtype=np.int32) for some in pieces for piece in some]
        if not self._rows:
            raise DataError("a split is empty; raise its share in preprocess.split, or add data")
        self._masker, self._fixed = masker, fixed
        self._stream = FIXED if is_fixed else TRAINING
        self.varies_by_epoch = not is_fixed

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, numbers: torch.Tensor) -> Batch:
        hidden = []
        for number in numbers.tolist():
            epoch, row = divmod(number, len(self._rows))
            hidden.append(self._masker.hide(self._rows[row], row, epoch, self._stream))
        rows = padded([seen for seen, _ in hidden], self._fixed)
        targets = np.full(rows.shape, NO_TOKEN, dtype=np.int64)
        for place, (_, wanted) in enumerate(hidden):
            targets[place, : len(wanted)] = wanted
        return Batch(torch.from_numpy(rows), torch.from_numpy(targets))

    def num_tokens(self, numbers: torch.Tensor) -> int:
        return sum(len(self._rows[number % len(self._rows)]) for number in numbers.tolist())
