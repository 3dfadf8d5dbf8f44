"""Layers that compute in float what their int8 form will compute."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from modelyard.errors import DataError
from modelyard.models.simulate import InputRange, rounded, simulate_, simulated


def test_weights_are_rounded_and_gradients_go_straight_through():
    """129 steps of each output's own size; the gradient of what was rounded is that of the weight."""
    weight = torch.randn(5, 40, generator=torch.Generator().manual_seed(0), requires_grad=True)
    whole = rounded(weight)
    steps = weight.detach().abs().amax(dim=1) / 64
    numbers = (whole / steps[:, None]).detach()
    torch.testing.assert_close(numbers, numbers.round(), rtol=0, atol=1e-4)
    assert (whole - weight).abs().max() <= steps.max() / 2 + 1e-6
    slope = torch.randn(5, 40, generator=torch.Generator().manual_seed(1))
    (whole * slope).sum().backward()
    torch.testing.assert_close(weight.grad, slope)


def test_a_range_follows_its_inputs_in_training_alone():
    """Inside of it values are rounded, beyond its ends they are cut off, and have no gradient there."""
    one = InputRange()
    one.set_(torch.tensor([-1.0, 3.0]))
    one.eval()
    given = torch.tensor([-2.0, 0.0, 0.5, 4.0], requires_grad=True)
    seen = one(given)
    seen.sum().backward()
    torch.testing.assert_close(seen.detach(), torch.tensor([-1.0, 0.0, 0.5, 3.0]), atol=4 / 255, rtol=0)
    assert seen[1] == 0, "zero stands for itself, as padding must"
    assert given.grad.tolist() == [0, 1, 1, 0]
    assert one.high.item() == 3
    one.train()(torch.tensor([[8.0]]))
    assert 3 < one.high.item() < 3.1
    one(torch.zeros(0, 1))  # a rank's share of a batch may be empty


def test_a_layer_that_is_not_there_is_named():
    """As a network says whose code has changed."""
    with pytest.raises(DataError, match="Sequential has no layer '7' to simulate"):
        simulate_(nn.Sequential(nn.Linear(2, 2)), ["7"])


def test_names_of_weights_stay():
    """Only the ranges are new, so that a trained network's weights fit."""
    network = nn.Sequential(nn.Conv2d(1, 2, 3, padding="same"), nn.Flatten(), nn.Linear(8, 2))
    names = set(network.state_dict())
    simulate_(network, ["0", "2"])
    assert set(network.state_dict()) - names == {f"{at}.range.{end}" for at in (0, 2) for end in ("low", "high")}
    assert list(simulated(network)) == ["0", "2"]
