"""Which rows come when: a stream of shuffled epochs, addressed by a global sample offset.

The order of an epoch follows from (seed, epoch) alone, alike on every rank and for any number of ranks, so a position
in the stream is one number: rows seen since the beginning.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

BLOCK_ROWS = 256  # neighbours that stay in one window, so that a disk reads them together


class RowOrder:
    """The order of the training rows.

    Args:
        window: about how many rows are shuffled among each other; None: all of them.
    """

    def __init__(self, rows: int, batch_size: int, seed: int, window: int | None = None) -> None:
        self.rows = rows
        self._batch_size = min(batch_size, rows)
        self._seed = seed
        self._window = window
        self._epoch = -1
        self._order: torch.Tensor | WindowedOrder = torch.empty(0, dtype=torch.int64)
        self.last_batch = torch.empty(0, dtype=torch.int64)

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.rows // self._batch_size)

    def batch_at(self, samples: int) -> torch.Tensor:
        """Numbers (n,) of the rows of the global batch that begins at an offset; it ends with its epoch."""
        epoch, position = divmod(samples, self.rows)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._order_of(epoch)
        self.last_batch = self._order[position : position + self._batch_size]
        return self.last_batch

    def _order_of(self, epoch: int) -> torch.Tensor | WindowedOrder:
        if self._window is None:
            return epoch_order(self.rows, self._seed, epoch)
        return WindowedOrder(self.rows, self._seed, epoch, self._window)


class WindowedOrder:
    """An epoch's order that is never held as a whole, for rows that are more than memory holds.

    Blocks of neighbouring rows are shuffled, then the rows of each window: of so many blocks in a row as fill it. So who
    reads a window reads whole blocks, each once in an epoch.

    Args:
        window: rows of a window, rounded up to whole blocks.
    """

    def __init__(self, rows: int, seed: int, epoch: int, window: int) -> None:
        self._rows = rows
        self._blocks = epoch_order(-(-rows // BLOCK_ROWS), seed, epoch)
        self._blocks_a_window = -(-window // BLOCK_ROWS)
        self._seeds = seed, epoch
        # Only the last block of the data set may be a shorter one, and it may come anywhere.
        sizes = torch.full_like(self._blocks, BLOCK_ROWS)
        sizes[self._blocks == len(self._blocks) - 1] = rows - (len(self._blocks) - 1) * BLOCK_ROWS
        self._starts = torch.cat(
            [torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)[self._blocks_a_window - 1 :: self._blocks_a_window]]
        )
        self._window = lru_cache(maxsize=2)(self._shuffled)

    def __getitem__(self, positions: slice) -> torch.Tensor:
        """Numbers (n,) int64 of the rows at some neighbouring positions of the epoch."""
        low, high = positions.start, min(positions.stop, self._rows)
        first, last = (int(torch.searchsorted(self._starts, at, right=True)) - 1 for at in (low, high - 1))
        start = int(self._starts[first])
        return torch.cat([self._window(number) for number in range(first, last + 1)])[low - start : high - start]

    def _shuffled(self, number: int) -> torch.Tensor:
        """The rows of a window, in their order."""
        blocks = self._blocks[number * self._blocks_a_window : (number + 1) * self._blocks_a_window]
        rows = (blocks[:, None] * BLOCK_ROWS + torch.arange(BLOCK_ROWS)).flatten()
        rows = rows[rows < self._rows]
        generator = torch.Generator().manual_seed(mixed_seed(*self._seeds, 1 + number))
        return rows[torch.randperm(len(rows), generator=generator)]


def epoch_order(rows: int, seed: int, epoch: int) -> torch.Tensor:
    """Numbers from 0 on in the order of an epoch: (rows,) int64."""
    generator = torch.Generator().manual_seed(mixed_seed(seed, epoch, 0))
    return torch.randperm(rows, generator=generator)


def mixed_seed(*parts: int) -> int:
    """Independent streams for neighbouring seeds, epochs and ranks (NumPy's SeedSequence mixes them)."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)
