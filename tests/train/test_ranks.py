"""The ranks that other tests borrow."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import distributed

from tests.train.ranks import ranks


def fails_on_the_first() -> str:
    if distributed.get_rank() == 0:
        raise ValueError("this rank fails")
    return "an answer that nobody waits for"


def hangs_behind_the_first() -> None:
    if distributed.get_rank() == 0:
        raise ValueError("this rank fails")
    distributed.barrier()


def sum_of_ranks() -> float:
    total = torch.tensor(float(distributed.get_rank() + 1))
    distributed.all_reduce(total)
    return float(total)


@pytest.mark.soak
def test_a_test_that_failed_leaves_nothing_to_the_next(tmp_path: Path):
    """Neither a rank's answer that came too late, nor a rank that waits for one that failed."""
    with ranks(2, tmp_path) as group:
        for function in (fails_on_the_first, hangs_behind_the_first):
            with pytest.raises(AssertionError, match="this rank fails"):
                group.run(function)
            assert group.run(sum_of_ranks) == [3.0, 3.0]
