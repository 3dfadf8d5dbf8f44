"""Which rows come when: a stream of shuffled epochs, addressed by a global sample offset.

The order of an epoch follows from (seed, epoch) alone, alike on every rank and for any number of ranks, so a position
in the stream is one number: rows seen since the beginning.
"""

from __future__ import annotations

import numpy as np
import torch


class RowOrder:
    """The order of the training rows."""

    def __init__(self, rows: int, batch_size: int, seed: int) -> None:
        self.rows = rows
        self._batch_size = min(batch_size, rows)
        self._seed = seed
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.int64)
        self.last_batch = self._order

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.rows // self._batch_size)

    def batch_at(self, samples: int) -> torch.Tensor:
        """Numbers (n,) of the rows of the global batch that begins at an offset; it ends with its epoch."""
        epoch, position = divmod(samples, self.rows)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, epoch_order(self.rows, self._seed, epoch)
        self.last_batch = self._order[position : position + self._batch_size]
        return self.last_batch


def epoch_order(rows: int, seed: int, epoch: int) -> torch.Tensor:
    """The order of the training rows in an epoch: (rows,) int64."""
    generator = torch.Generator().manual_seed(mixed_seed(seed, epoch, 0))
    return torch.randperm(rows, generator=generator)


def mixed_seed(*parts: int) -> int:
    """Independent streams for neighbouring seeds, epochs and ranks (NumPy's SeedSequence mixes them)."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)
