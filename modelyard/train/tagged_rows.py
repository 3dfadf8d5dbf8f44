"""Rows of texts whose tokens carry tags."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from modelyard.errors import DataError
from modelyard.task_kinds import NO_TOKEN
from modelyard.train.rows import Batch
from modelyard.transform.text import padded


class TaggedSplit:
    """Texts as tokens with their tags in memory, without what fills them up: features and targets (n, t) int64, as wide as
    the longest of a batch.

    Args:
        parts: network input (n, t) with tags (n, s), `NO_TOKEN` where a token carries none; any number of times.
        fixed: tokens that every batch is wide; None: as many as its longest text has.
    """

    def __init__(self, parts: Iterable[tuple[np.ndarray, np.ndarray]], fixed: int | None = None) -> None:
        tokens, tags, lengths = [np.empty(0, np.int32)], [np.empty(0, np.int16)], [np.zeros(1, np.int64)]
        for rows, targets in parts:
            here = rows >= 0
            tokens.append(rows[here].astype(np.int32))
            tags.append(targets[here[:, : targets.shape[1]]].astype(np.int16))
            lengths.append(here.sum(axis=1))
        if len(lengths) == 1:
            raise DataError("a split is empty; raise its share in preprocess.split, or add data")
        self._tokens, self._tags = np.concatenate(tokens), np.concatenate(tags)
        assert len(self._tokens) == len(self._tags), "every token has a tag, or says that it has none"
        self._ends, self._fixed = np.cumsum(np.concatenate(lengths)), fixed

    def __len__(self) -> int:
        return len(self._ends) - 1

    def batch(self, numbers: torch.Tensor) -> Batch:
        places = [slice(self._ends[at], self._ends[at + 1]) for at in numbers.tolist()]
        rows = padded([self._tokens[place] for place in places], self._fixed)
        targets = np.full(rows.shape, NO_TOKEN, dtype=np.int64)
        for row, place in enumerate(places):
            targets[row, : place.stop - place.start] = self._tags[place]
        return Batch(torch.from_numpy(rows), torch.from_numpy(targets))

    def num_tokens(self, numbers: torch.Tensor) -> int:
        at = numbers.numpy()
        return int((self._ends[at + 1] - self._ends[at]).sum())
