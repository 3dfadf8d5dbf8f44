"""Copies of tensors for a checkpoint."""

from __future__ import annotations

import math

import pytest
import torch

from modelyard.train.snapshots import all_finite, staged


def test_a_copy_is_written_over_the_last_one_where_it_fits():
    """Training moves on without the copy; the next save takes the same memory, unless a shape has changed."""
    weights = {"a": torch.ones(3), "b": torch.ones(2, 2)}
    first = staged(weights)
    weights["a"].fill_(2)
    assert first["a"].tolist() == [1, 1, 1]
    weights["b"] = torch.ones(5)
    second = staged(weights, first)
    assert second["a"].data_ptr() == first["a"].data_ptr() != weights["a"].data_ptr()
    assert second["a"].tolist() == [2, 2, 2]
    assert second["b"].shape == (5,)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_one_number_that_is_none_is_found(wrong: float):
    """In any type of numbers, among empty tensors and counters."""
    good = [torch.randn(1000), torch.empty(0), torch.tensor(3), torch.randn(7).bfloat16(), torch.tensor(1.5)]
    assert all_finite(good)
    for number, place in ((0, 999), (3, 4)):
        bad = [tensor.clone() for tensor in good]
        bad[number][place] = wrong
        assert not all_finite(bad)
