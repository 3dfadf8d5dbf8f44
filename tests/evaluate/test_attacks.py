"""Attacks on networks whose gradients are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from modelyard.evaluate.attacks import Reach, fgsm, pgd, random_signs

ROWS = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
TARGETS = (ROWS @ [1.0, -2.0, 0.0] < 0).astype(np.int64)
REACH = Reach.of(ROWS, np.array([True, True, True]), 0.1)


def linear() -> nn.Module:
    """Class 0 where x - 2 y is positive: the third input plays no part."""
    network = nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([[1.0, -2.0, 0.0], [-1.0, 2.0, 0.0]]))
    return network


def losses(rows: np.ndarray) -> np.ndarray:
    outputs = linear()(torch.from_numpy(rows))
    return nn.functional.cross_entropy(outputs, torch.from_numpy(TARGETS), reduction="none").detach().numpy()


def test_a_gradient_step_goes_as_far_as_it_may():
    """Against the right class, each input by its whole reach; an input without a part in the answer stays."""
    changed = fgsm(linear(), ROWS, TARGETS, Reach(REACH.step, REACH.low - 9, REACH.high + 9))
    direction = np.where(TARGETS[:, None] == 0, [-1.0, 1.0, 0.0], [1.0, -1.0, 0.0])
    np.testing.assert_allclose(changed - ROWS, direction * REACH.step, atol=1e-6)


def test_on_a_linear_network_several_steps_find_no_more_than_one():
    """The direction is the same everywhere, so both end in the same corner, but for the input that does not matter."""
    corner, wandered = (
        fgsm(linear(), ROWS, TARGETS, REACH),
        pgd(linear(), ROWS, TARGETS, REACH, np.random.default_rng(0)),
    )
    np.testing.assert_allclose(wandered[:, :2], corner[:, :2], atol=1e-6)


@pytest.mark.parametrize("kind", ["fgsm", "pgd", "random signs"])
def test_no_attack_leaves_its_reach(kind: str):
    """No further than the step from where a row was, nor beyond what rows hold; what must not move stays as it was."""
    still = Reach.of(ROWS, np.array([True, False, True]), 0.5)
    rng = np.random.default_rng(0)
    changed = {
        "fgsm": lambda: fgsm(linear(), ROWS, TARGETS, still),
        "pgd": lambda: pgd(linear(), ROWS, TARGETS, still, rng),
        "random signs": lambda: random_signs(losses, ROWS, still, rng),
    }[kind]()
    assert (np.abs(changed - ROWS) <= still.step + 1e-6).all()
    assert (changed >= ROWS.min(axis=0)).all()
    assert (changed <= ROWS.max(axis=0)).all()
    np.testing.assert_array_equal(changed[:, 1], ROWS[:, 1])
    assert (losses(changed) > losses(ROWS)).mean() > 0.9


def test_tries_hurt_every_row_and_gradients_hurt_more():
    """Without a gradient no row gets better, and the best of the tries is still no worse than the gradient's corner."""
    tried = losses(random_signs(losses, ROWS, REACH, np.random.default_rng(0)))
    assert (tried >= losses(ROWS)).all()
    assert (losses(fgsm(linear(), ROWS, TARGETS, REACH)) >= tried - 1e-6).all()


def test_a_regression_is_attacked_too():
    """The squared error grows: away from the target on either side."""
    network = nn.Linear(3, 1, bias=False)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([[1.0, -2.0, 0.5]]))
    truth = (ROWS @ [1.0, -2.0, 0.5] + 0.1).astype(np.float32)
    changed = fgsm(network, ROWS, truth, REACH)
    after = (changed @ np.array([1.0, -2.0, 0.5]) - truth) ** 2
    assert (after > 0.1**2).mean() > 0.95
