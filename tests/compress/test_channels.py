"""Channels of convolutions that go."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from modelyard.compress import LowRank, PruneUnits, PruneWeights
from modelyard.compress.chains import Chain, unit_chains
from modelyard.compress.networks import multiply_accumulates, parameters, shrink_
from modelyard.errors import ConversionFailed, DataError
from modelyard.models import CnnConfig, LinearShape
from modelyard.models.build import build_model
from modelyard.models.reshape import reshape_

CONFIG = CnnConfig(kind="cnn", image=(12, 9), channels=(8, 12), hidden=20)
ROWS = torch.rand(40, 12 * 9, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    torch.manual_seed(0)
    return build_model(CONFIG, 12 * 9, 5).eval()


def test_channels_are_followed_through_pooling_and_flattening():
    """A channel that is flattened is as many inputs of the linear layer as it has pixels."""
    assert unit_chains(network()) == [
        Chain("convolutions.0", "convolutions.3"),
        Chain("convolutions.3", "head.1", positions=3 * 2),
        Chain("head.1", "head.4"),
    ]


@pytest.mark.parametrize("importance", ["activation", "weight"])
def test_a_pruned_network_is_physically_smaller_and_can_be_built_again(importance: str):
    """Parameters and multiplications fall; its shapes alone lead to a network that takes its weights."""
    smaller = network()
    shapes = shrink_(smaller, PruneUnits.model_validate({"fraction": 0.5, "importance": importance}), ROWS)
    assert shapes["convolutions.3"] == LinearShape(inputs=4, outputs=6)
    assert shapes["head.1"] == LinearShape(inputs=6 * 3 * 2, outputs=10)
    assert parameters(smaller) < 0.35 * parameters(network())
    assert multiply_accumulates(smaller, ROWS) < 0.4 * multiply_accumulates(network(), ROWS)
    again = reshape_(network(), shapes)
    again.load_state_dict(smaller.state_dict())
    torch.testing.assert_close(again.eval()(ROWS), smaller(ROWS))


def test_channels_that_never_speak_can_go_unnoticed():
    """Half of the channels and units are dead: removing half changes nothing."""
    dead = network()
    with torch.no_grad():
        for name in ("convolutions.0", "convolutions.3", "head.1"):
            fill_(dead, name, -1.0)
    expected = dead(ROWS)
    shrink_(dead, PruneUnits(fraction=0.5), ROWS)
    torch.testing.assert_close(dead(ROWS), expected, rtol=1e-4, atol=1e-5)


def test_what_channels_said_on_average_is_kept():
    """Channels that always say the same go into the biases of the layer that reads them, pixel by pixel."""
    torch.manual_seed(0)
    constant = build_model(CONFIG.model_copy(update={"channels": (8,)}), 12 * 9, 5).eval()
    with torch.no_grad():
        fill_(constant, "convolutions.0", 0.01)
        fill_(constant, "head.1", -1.0)  # behind a ReLU: silent
    expected = constant(ROWS)
    shrink_(constant, PruneUnits(fraction=0.5), ROWS)
    assert constant.get_parameter("convolutions.0.weight").shape == (4, 1, 3, 3)
    torch.testing.assert_close(constant(ROWS), expected, rtol=1e-4, atol=1e-5)


def fill_(network: nn.Module, name: str, value: float) -> None:
    """Make every other unit of a layer say the same whatever it sees."""
    network.get_parameter(f"{name}.weight")[::2] = 0
    network.get_parameter(f"{name}.bias")[::2] = value


def test_other_techniques_take_what_they_can():
    """Small weights of convolutions become zero too; low rank makes the linear layers narrow and leaves convolutions."""
    zeroed = network()
    assert shrink_(zeroed, PruneWeights(fraction=0.5), ROWS) == {}
    assert bool((zeroed.get_submodule("convolutions.3").weight == 0).any())
    shapes = shrink_(network(), LowRank(parameter_fraction=0.4), ROWS)
    assert set(shapes) == {"head.1", "head.4"}


class Unflattened(nn.Module):
    """Its linear layer reads along the width of the image: no channel may go."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 9, 1), nn.Linear(9, 5)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(features.unflatten(1, (1, 12, 9))))).mean(dim=(1, 2))


@pytest.mark.parametrize(
    "odd",
    [
        Unflattened(),
        nn.Sequential(nn.Unflatten(1, (1, 12, 9)), nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)),
        nn.Sequential(nn.Unflatten(1, (2, 6, 9)), nn.Conv2d(2, 4, 1, groups=2), nn.Flatten(), nn.Linear(216, 2)),
    ],
)
def test_what_mixes_channels_is_left_alone(odd: nn.Module):
    """A linear layer over pixels, a normalisation with weights of its own, groups: said, not cut wrongly."""
    with pytest.raises(ConversionFailed, match=r"no hidden layer between two linear ones, nor between convolutions"):
        shrink_(odd.eval(), PruneUnits(), ROWS)


def test_a_convolution_has_no_rank():
    """A shape that does not belong to the layer of that name is refused."""
    with pytest.raises(DataError, match=r"no layer 'convolutions\.0' to reshape"):
        reshape_(network(), {"convolutions.0": LinearShape(inputs=1, outputs=4, rank=2)})
