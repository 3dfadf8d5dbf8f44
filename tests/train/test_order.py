"""The order of rows: every row once an epoch, alike for whoever asks, and within reach of a disk."""

from __future__ import annotations

import pytest
import torch

from modelyard.train.order import BLOCK_ROWS, RowOrder, WindowedOrder, epoch_order


def stream(order: RowOrder, batch_size: int, epochs: int = 1) -> torch.Tensor:
    """All rows of some epochs, asked for batch by batch."""
    found: list[torch.Tensor] = []
    samples = 0
    while samples < epochs * order.rows:
        found.append(order.batch_at(samples))
        samples += len(found[-1])
    assert all(len(batch) <= batch_size for batch in found)
    return torch.cat(found)


@pytest.mark.parametrize("window", [None, 1, 1000, 10**6])
@pytest.mark.parametrize("rows", [3, BLOCK_ROWS, 5 * BLOCK_ROWS + 17])
def test_every_row_comes_once_an_epoch(rows: int, window: int | None):
    """Whatever the window, also where the last block is a short one; epochs differ."""
    order = RowOrder(rows, 64, 7, window)
    both = stream(order, 64, epochs=2).reshape(2, rows)
    assert both.sort(dim=1).values.tolist() == [list(range(rows))] * 2
    assert rows < 10 or both[0].tolist() != both[1].tolist()


@pytest.mark.parametrize("window", [None, 700])
def test_the_order_does_not_depend_on_who_asks(window: int | None):
    """Batches of another size, and a start in the middle, meet the same rows."""
    rows = 4 * BLOCK_ROWS + 5
    whole = stream(RowOrder(rows, 64, 7, window), 64)
    assert stream(RowOrder(rows, 500, 7, window), 500).tolist() == whole.tolist()
    assert RowOrder(rows, 100, 7, window).batch_at(rows + 300).tolist() != whole[300:400].tolist()
    assert RowOrder(rows, 100, 7, window).batch_at(300).tolist() == whole[300:400].tolist()


def test_without_a_window_all_rows_are_shuffled():
    """The order of an epoch is one permutation."""
    assert stream(RowOrder(1000, 64, 3), 64).tolist() == epoch_order(1000, 3, 0).tolist()


def test_a_window_reads_whole_blocks():
    """A window of 1,024 rows comes from four blocks, shuffled among each other, and no other window reads those."""
    order, rows = WindowedOrder(40 * BLOCK_ROWS, 7, 0, 1000), 40 * BLOCK_ROWS
    windows = [order[start : start + 1024] for start in range(0, rows, 1024)]
    blocks = [set((window // BLOCK_ROWS).tolist()) for window in windows]
    assert all(len(one) == 4 for one in blocks)
    assert sum(map(len, blocks)) == len(set.union(*blocks)) == 40
    neighbours = (windows[0][1:] - windows[0][:-1]).abs() == 1
    assert neighbours.float().mean() < 0.05
