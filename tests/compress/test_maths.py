"""The maths of network techniques, tensor in and tensor out, and what they make of networks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from modelyard.compress import LowRank, PrincipalComponents, PruneUnits, PruneWeights
from modelyard.compress.chains import Chain, unit_chains
from modelyard.compress.factorise import (
    principal_factors,
    rank_for_energy,
    rank_for_fraction,
    singular_values,
    truncated_svd,
)
from modelyard.compress.networks import multiply_accumulates, parameters, shrink_
from modelyard.compress.prune import importance_by_activation, kept_units, mean_contribution, prune_smallest_
from modelyard.compress.techniques import NetworkTechnique
from modelyard.errors import ConversionFailed
from modelyard.models.reshape import reshape_
from tests.workbench import PROPERTY


@PROPERTY
@given(seed=st.integers(0, 2**20), outputs=st.integers(2, 9), inputs=st.integers(2, 9), data=st.data())
def test_truncated_svd_is_the_nearest_of_its_rank(seed: int, outputs: int, inputs: int, data: st.DataObject):
    """Its squared error is exactly the energy of the singular values that were left out (Eckart & Young)."""
    weight = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed))
    rank = data.draw(st.integers(1, min(outputs, inputs)))
    first, second = truncated_svd(weight, rank)
    values = singular_values(weight)
    assert (first.shape, second.shape) == ((rank, inputs), (outputs, rank))
    left_out = values[rank:].square().sum().item()
    assert (weight - second @ first).square().sum().item() == pytest.approx(left_out, abs=1e-4)


def test_ranks_follow_from_what_is_asked():
    """The smallest that keeps the energy, the largest that leaves the fraction; never none."""
    values = torch.tensor([3.0, 2.0, 1.0])  # squares 9, 4, 1 of 14
    assert [rank_for_energy(values, energy) for energy in (0.5, 0.9, 0.95)] == [1, 2, 3]
    assert rank_for_energy(torch.zeros(3), 0.9) == 1
    assert rank_for_fraction(100, 100, 0.5) == 25  # 25 * 200 = half of 10,000
    assert rank_for_fraction(2, 2, 0.01) == 1


def test_principal_factors_are_exact_on_the_subspace():
    """Inputs that vary in two directions only, about a mean, pass through two components unchanged."""
    generator = torch.Generator().manual_seed(0)
    directions, mean = torch.randn(2, 6, generator=generator), torch.randn(6, generator=generator) * 5
    inputs = torch.randn(50, 2, generator=generator) @ directions + mean
    weight, bias = torch.randn(4, 6, generator=generator), torch.randn(4, generator=generator)
    first, second, shifted = principal_factors(weight, bias, inputs, 0.99999)
    assert len(first) == 2
    torch.testing.assert_close(inputs @ first.T @ second.T + shifted, inputs @ weight.T + bias, rtol=1e-4, atol=1e-4)


def test_units_that_do_nothing_go_first():
    """A silent unit and one that nobody reads; of all units at least one stays."""
    activations, reading = torch.ones(5, 4), torch.ones(3, 4)
    activations[:, 1] = 0
    reading[:, 2] = 0
    importance = importance_by_activation(activations, reading)
    assert kept_units(importance, 0.5).tolist() == [0, 3]
    assert len(kept_units(importance, 0.99)) == 1
    torch.testing.assert_close(
        mean_contribution(reading, torch.ones(4) * 2, torch.tensor([0, 3])), torch.full((3,), 2.0)
    )


def test_the_smallest_weights_of_all_layers_become_zero():
    """Over all matrices together, not in each."""
    small, large = torch.full((2, 5), 0.1), torch.full((2, 5), 3.0)
    assert prune_smallest_([small, large], 0.5) == 10
    assert (small == 0).all()
    assert (large == 3).all()


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(12, 40), nn.ReLU(), nn.Dropout(0.1), nn.Linear(40, 30), nn.Tanh(), nn.Linear(30, 5)
    ).eval()


ROWS = torch.randn(64, 3, generator=torch.Generator().manual_seed(1)) @ torch.randn(
    3, 12, generator=torch.Generator().manual_seed(2)
)


@pytest.mark.parametrize(
    ("technique", "least", "most"),
    [
        (LowRank(parameter_fraction=0.5), 0.4, 0.6),
        (PrincipalComponents(variance=0.999), 0.1, 0.85),
        (PruneUnits(fraction=0.5), 0.2, 0.5),
        (PruneUnits(fraction=0.5, importance="weight"), 0.2, 0.5),
    ],
)
def test_a_smaller_network_is_physically_smaller_and_can_be_built_again(
    technique: NetworkTechnique, least: float, most: float
):
    """Parameters and multiplications fall; its shapes alone lead to a network that takes its weights."""
    whole, smaller = network(), network()
    shapes = shrink_(smaller, technique, ROWS)
    assert least < parameters(smaller) / parameters(whole) < most
    assert multiply_accumulates(smaller, ROWS) < most * multiply_accumulates(whole, ROWS) + 60
    again = reshape_(network(), shapes)
    again.load_state_dict(smaller.state_dict())
    torch.testing.assert_close(again.eval()(ROWS), smaller(ROWS))


def test_projection_on_components_hardly_changes_answers():
    """On inputs of few dimensions, where cutting the weights' own rank would."""
    whole, smaller = network(), network()
    shrink_(smaller, PrincipalComponents(variance=0.9999), ROWS)
    assert (whole(ROWS) - smaller(ROWS)).abs().max() < 0.02


def test_units_that_never_speak_can_go_unnoticed():
    """Half of the units are dead: removing half changes nothing."""
    dead = network()
    with torch.no_grad():
        for layer in (dead[0], dead[3]):
            layer.weight[::2] = 0
            layer.bias[::2] = -1 if layer is dead[0] else 0
    expected = dead(ROWS)
    shrink_(dead, PruneUnits(fraction=0.5), ROWS)
    torch.testing.assert_close(dead(ROWS), expected, rtol=1e-4, atol=1e-5)


def test_zeroed_weights_alone_make_nothing_smaller():
    """As many parameters and multiplications as before: said in the docs, held here."""
    pruned = network()
    assert shrink_(pruned, PruneWeights(fraction=0.5), ROWS) == {}
    assert parameters(pruned) == parameters(network())


class Branching(nn.Module):
    """Its hidden units are read twice: none may go."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 12), nn.Linear(12, 5)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.first(features))
        return self.second(hidden + features)


class Deciding(nn.Module):
    """A network whose path depends on its data."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 5)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.layer(features) if features.sum() > 0 else -self.layer(features)


@pytest.mark.parametrize(
    ("odd", "technique", "sentence"),
    [
        (Branching(), PruneUnits(), "no hidden layer between two linear ones"),
        (Deciding(), PruneUnits(), "cannot be traced"),
        (nn.Sequential(nn.ReLU()), PruneWeights(), "no linear layers"),
        (nn.Linear(12, 2), LowRank(energy=0.999), "no layer gets smaller"),
        (nn.Linear(12, 2), PrincipalComponents(), "few enough principal components"),
    ],
)
def test_what_cannot_get_smaller_is_said(odd: nn.Module, technique: NetworkTechnique, sentence: str):
    """A reason, not a wrong network."""
    with pytest.raises(ConversionFailed, match=sentence):
        shrink_(odd.eval(), technique, ROWS)


def test_chains_are_followed_through_functions():
    """Not only modules stand between layers."""

    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(12, 12), nn.Linear(12, 5)

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return self.second(torch.relu(self.first(features)).tanh())

    assert unit_chains(Functional()) == [Chain("first", "second")]
