"""Network techniques carried out on a `torch.nn.Module`: hooks and layers here, the maths in factorise.py and prune.py."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from modelyard.compress import factorise, heads, prune
from modelyard.compress.chains import Chain, Layer, layers_of, unit_chains
from modelyard.compress.techniques import (
    Distil,
    LowRank,
    NetworkTechnique,
    PrincipalComponents,
    PruneHeads,
    PruneUnits,
    PruneWeights,
    QuantizeAware,
)
from modelyard.errors import ConversionFailed
from modelyard.models.config import LinearShape
from modelyard.models.reshape import linear_of, replace_

Shapes = dict[str, LinearShape]


def shrink_(
    network: nn.Module, technique: NetworkTechnique, rows: Tensor, targets: Tensor | None = None, loss: str = ""
) -> Shapes:
    """Make a network smaller in place.

    Args:
        network: in evaluation mode.
        rows: (n, width) network input of training rows.
        targets: (n,) encoded, and ``loss`` of the task kind: for what is judged by the loss.

    Returns:
        Layers whose shape is another one now.

    Raises:
        ConversionFailed: nothing in this network gets smaller by this technique.
    """
    with torch.no_grad():
        match technique:
            case LowRank():
                return _low_rank_(network, technique)
            case PrincipalComponents():
                return _principal_components_(network, technique, rows)
            case PruneUnits():
                return _prune_units_(network, technique, rows)
            case PruneHeads():
                assert targets is not None, "heads are judged by the loss"
                return _prune_heads_(network, technique, rows, targets, loss)
            case PruneWeights():
                prune.prune_smallest_([layer.weight for layer in layers_of(network).values()], technique.fraction)
                return {}
            case Distil():
                raise AssertionError("a student is trained, not cut out of its teacher")
            case QuantizeAware():
                raise AssertionError("its layers keep their shapes: see learned.py")


def linears(network: nn.Module) -> dict[str, nn.Linear]:
    """Linear layers by name.

    Raises:
        ConversionFailed: there are none.
    """
    found = {name: layer for name, layer in network.named_modules() if isinstance(layer, nn.Linear)}
    if not found:
        raise ConversionFailed(f"{type(network).__name__} has no linear layers")
    return found


def parameters(network: nn.Module) -> int:
    """How many numbers were trained."""
    return sum(parameter.numel() for parameter in network.parameters())


def multiply_accumulates(network: nn.Module, example: Tensor) -> int:
    """Of one row, by torch's own count of matrix products and convolutions."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(example[:1])
    return counter.get_total_flops() // 2


# -- techniques -------------------------------------------------------------------------------------------


def _low_rank_(network: nn.Module, technique: LowRank) -> Shapes:
    shapes: Shapes = {}
    for name, layer in linears(network).items():
        outputs, inputs = layer.weight.shape
        if technique.energy is not None:
            rank = factorise.rank_for_energy(factorise.singular_values(layer.weight), technique.energy)
        else:
            assert technique.parameter_fraction is not None
            rank = factorise.rank_for_fraction(outputs, inputs, technique.parameter_fraction)
        if _is_smaller(rank, layer):
            first, second = factorise.truncated_svd(layer.weight, rank)
            shapes[name] = _factorise_(network, name, first, second, layer.bias)
    return _required(shapes, "no layer gets smaller at this rank")


def _principal_components_(network: nn.Module, technique: PrincipalComponents, rows: Tensor) -> Shapes:
    shapes: Shapes = {}
    seen = inputs_of(network, rows)
    for name, layer in linears(network).items():
        factors = factorise.principal_factors(layer.weight, layer.bias, seen[name], technique.variance)
        if _is_smaller(len(factors[0]), layer):
            shapes[name] = _factorise_(network, name, *factors)
    return _required(shapes, "no layer's input has few enough principal components")


def _prune_units_(network: nn.Module, technique: PruneUnits, rows: Tensor) -> Shapes:
    layers, chains = layers_of(network), unit_chains(network)
    seen = seen_by(network, {chain.reads for chain in chains}, rows)
    for chain in chains:
        maker, reader = layers[chain.makes], layers[chain.reads]
        activations, reading = _by_unit(seen[chain.reads], chain), _by_unit(reader.weight, chain)
        importance = (
            prune.importance_by_activation(activations, reading)
            if technique.importance == "activation"
            else prune.importance_by_weight(maker.weight.flatten(1), reading)
        )
        kept = prune.kept_units(importance, technique.fraction)
        places = _places(kept, chain.positions)
        if reader.bias is not None:
            reader.bias.data += _mean_contribution(reader, seen[chain.reads], places)
        maker.weight = nn.Parameter(maker.weight[kept])
        if maker.bias is not None:
            maker.bias = nn.Parameter(maker.bias[kept])
        reader.weight = nn.Parameter(reader.weight[:, places])
    return {name: _took_shape_(layers[name]) for chain in chains for name in (chain.makes, chain.reads)}


def _prune_heads_(network: nn.Module, technique: PruneHeads, rows: Tensor, targets: Tensor, loss: str) -> Shapes:
    found = heads.attentions(network)
    importance = heads.importances(network, found, rows, targets, heads.loss_of(loss))
    changed = heads.prune_heads_(network, found, heads.kept_heads(importance, technique.fraction), rows)
    layers = linears(network)
    return {name: _took_shape_(layers[name]) for name in changed}


def _by_unit(values: Tensor, chain: Chain) -> Tensor:
    """What belongs to each unit as (anything, units): of weights (out, units, ...) or activations (n, units, ...), where
    a channel that was flattened has ``positions`` numbers side by side."""
    apart = values.unflatten(1, (-1, chain.positions)) if values.ndim == 2 else values.flatten(2)
    return apart.transpose(1, 2).flatten(0, 1)


def _places(units: Tensor, positions: int) -> Tensor:
    """Inputs of a reading layer that units became."""
    return (units[:, None] * positions + torch.arange(positions)).flatten()


def _mean_contribution(reader: Layer, seen: Tensor, kept: Tensor) -> Tensor:
    """For the bias of the reading layer. A convolution's edge, where it also reads padding, is not looked at apart."""
    if isinstance(reader, nn.Linear):
        return prune.mean_contribution(reader.weight, seen.mean(dim=0), kept)
    return prune.mean_contribution(reader.weight.sum(dim=(2, 3)), seen.mean(dim=(0, 2, 3)), kept)


def _took_shape_(layer: Layer) -> LinearShape:
    """A layer told what its weights have become."""
    outputs, inputs = layer.weight.shape[:2]
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = outputs, inputs
    else:
        layer.out_channels, layer.in_channels = outputs, inputs
    return LinearShape(inputs=inputs, outputs=outputs)


def inputs_of(network: nn.Module, rows: Tensor) -> dict[str, Tensor]:
    """What rows (n, width) put into each linear layer: name -> (m, in), m >= n where the layer reads sequences."""
    return seen_by(network, linears(network), rows)


def seen_by(network: nn.Module, names: Collection[str], rows: Tensor) -> dict[str, Tensor]:
    """What rows (n, width) put into some layers: (m, in) for linear ones, (n, channels, height, width) for convolutions."""
    seen: dict[str, Tensor] = {}

    def keep(name: str, given: Tensor) -> None:
        seen[name] = given.detach().flatten(0, -2) if given.ndim != 4 else given.detach()

    hooks = [
        network.get_submodule(name).register_forward_pre_hook(lambda _, inputs, name=name: keep(name, inputs[0]))
        for name in names
    ]
    try:
        network(rows)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


# -- details ----------------------------------------------------------------------------------------------


def _is_smaller(rank: int, layer: nn.Linear) -> bool:
    outputs, inputs = layer.weight.shape
    return rank * (outputs + inputs) < outputs * inputs


def _factorise_(network: nn.Module, name: str, first: Tensor, second: Tensor, bias: Tensor | None) -> LinearShape:
    shape = LinearShape(inputs=first.shape[1], outputs=second.shape[0], rank=len(first))
    had_bias = dict(network.named_modules())[name].bias is not None
    layer = linear_of(shape, bias=had_bias)
    state = {"0.weight": first, "1.weight": second}
    if had_bias:
        assert bias is not None
        state["1.bias"] = bias
    layer.load_state_dict(state)
    replace_(network, name, layer.eval())
    return shape


def _required(shapes: Shapes, problem: str) -> Shapes:
    if not shapes:
        raise ConversionFailed(problem)
    return shapes
