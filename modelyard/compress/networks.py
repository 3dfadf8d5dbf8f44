"""Network techniques carried out on a `torch.nn.Module`: hooks and layers here, the maths in factorise.py and prune.py."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from modelyard.compress import factorise, prune
from modelyard.compress.techniques import (
    Distil,
    LowRank,
    NetworkTechnique,
    PrincipalComponents,
    PruneUnits,
    PruneWeights,
)
from modelyard.errors import ConversionFailed
from modelyard.models.config import LinearShape
from modelyard.models.reshape import linear_of, replace_

# What works on each unit alone, so that a unit can go without the others noticing.
UNITWISE_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Hardswish,
    nn.Identity, nn.Dropout,
)  # fmt: skip
UNITWISE_FUNCTIONS: set[Callable[..., Tensor]] = {
    torch.relu, torch.tanh, torch.sigmoid, functional.relu, functional.gelu, functional.silu, functional.leaky_relu,
    functional.elu, functional.tanh, functional.sigmoid, functional.dropout,
}  # fmt: skip
UNITWISE_METHODS = {"relu", "tanh", "sigmoid"}

Shapes = dict[str, LinearShape]


def shrink_(network: nn.Module, technique: NetworkTechnique, rows: Tensor) -> Shapes:
    """Make a network smaller in place.

    Args:
        network: in evaluation mode.
        rows: (n, width) network input of training rows.

    Returns:
        Linear layers whose shape is another one now.

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
            case PruneWeights():
                prune.prune_smallest_([layer.weight for layer in linears(network).values()], technique.fraction)
                return {}
            case Distil():
                raise AssertionError("a student is trained, not cut out of its teacher")


def linears(network: nn.Module) -> dict[str, nn.Linear]:
    """Linear layers by name.

    Raises:
        ConversionFailed: there are none.
    """
    found = {name: layer for name, layer in network.named_modules() if isinstance(layer, nn.Linear)}
    if not found:
        raise ConversionFailed(f"{type(network).__name__} has no linear layers")
    return found


def unit_chains(network: nn.Module) -> list[tuple[str, str]]:
    """Pairs of linear layers (makes, reads) between which there are only operations on each unit alone.

    Raises:
        ConversionFailed: torch.fx cannot follow the network's `forward`, or there is no such pair.
    """
    try:
        graph = fx.symbolic_trace(network).graph
    except Exception as failure:  # tracing runs the user's code, which may raise anything
        reason = (str(failure).strip().splitlines() or [type(failure).__name__])[0]
        raise ConversionFailed(f"{type(network).__name__} cannot be traced: {reason}") from failure
    layers = linears(network)
    uses = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    found = [
        (str(node.target), reader)
        for node in graph.nodes
        if _is_linear(node, layers) and (reader := _reader_of(node, network, layers))
    ]
    chains = [(makes, reads) for makes, reads in found if uses[makes] == uses[reads] == 1]
    if not chains:
        raise ConversionFailed(f"{type(network).__name__} has no hidden layer between two linear ones")
    return chains


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
    layers, seen = linears(network), inputs_of(network, rows)
    shapes: Shapes = {}
    for makes, reads in unit_chains(network):
        maker, reader, activations = layers[makes], layers[reads], seen[reads]
        importance = (
            prune.importance_by_activation(activations, reader.weight)
            if technique.importance == "activation"
            else prune.importance_by_weight(maker.weight, reader.weight)
        )
        kept = prune.kept_units(importance, technique.fraction)
        if reader.bias is not None:
            reader.bias.data += prune.mean_contribution(reader.weight, activations.mean(dim=0), kept)
        maker.weight = nn.Parameter(maker.weight[kept])
        if maker.bias is not None:
            maker.bias = nn.Parameter(maker.bias[kept])
        reader.weight = nn.Parameter(reader.weight[:, kept])
    for makes, reads in unit_chains(network):
        for name in (makes, reads):
            outputs, inputs = layers[name].weight.shape
            layers[name].out_features, layers[name].in_features = outputs, inputs
            shapes[name] = LinearShape(inputs=inputs, outputs=outputs)
    return shapes


def inputs_of(network: nn.Module, rows: Tensor) -> dict[str, Tensor]:
    """What rows (n, width) put into each linear layer: name -> (m, in), m >= n where the layer reads sequences."""
    seen: dict[str, Tensor] = {}
    hooks = [
        layer.register_forward_pre_hook(
            lambda _, inputs, name=name: seen.update({name: inputs[0].detach().flatten(0, -2)})
        )
        for name, layer in linears(network).items()
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


def _reader_of(node: fx.Node, network: nn.Module, layers: dict[str, nn.Linear]) -> str:
    """The linear layer that alone reads what a node makes, through unitwise operations; empty: there is none."""
    for user in _only_users(node):
        if _is_linear(user, layers):
            return str(user.target)
        if not _is_unitwise(user, network):
            return ""
    return ""


def _only_users(node: fx.Node) -> Iterator[fx.Node]:
    while len(node.users) == 1:
        node = next(iter(node.users))
        yield node


def _is_linear(node: fx.Node, layers: dict[str, nn.Linear]) -> bool:
    return node.op == "call_module" and str(node.target) in layers


def _is_unitwise(node: fx.Node, network: nn.Module) -> bool:
    if node.op == "call_module":
        return isinstance(network.get_submodule(str(node.target)), UNITWISE_MODULES)
    if node.op == "call_function":
        return node.target in UNITWISE_FUNCTIONS
    return node.op == "call_method" and node.target in UNITWISE_METHODS
