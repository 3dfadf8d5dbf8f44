"""Which hidden units of a network can go without anybody else noticing: torch.fx follows who reads what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from modelyard.errors import ConversionFailed

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
# The same for the channels of a convolution.
CHANNELWISE_MODULES = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Dropout2d)
CHANNELWISE_FUNCTIONS: set[Callable[..., Tensor]] = {
    functional.avg_pool2d, functional.adaptive_avg_pool2d, functional.dropout2d,
}  # fmt: skip

Layer = nn.Linear | nn.Conv2d


@dataclass(frozen=True)
class Chain:
    """Two layers between which each unit (of a convolution: each channel) goes its own way.

    Attributes:
        makes, reads: names of the layers.
        positions: numbers that the reading layer sees of one unit: height times width of a channel that was flattened.
    """

    makes: str
    reads: str
    positions: int = 1


def layers_of(network: nn.Module) -> dict[str, Layer]:
    """Linear and convolutional layers by name. Convolutions in groups mix their channels in ways of their own.

    Raises:
        ConversionFailed: there are none.
    """
    found = {
        name: layer
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)
    }
    if not found:
        raise ConversionFailed(f"{type(network).__name__} has no linear layers")
    return found


def unit_chains(network: nn.Module) -> list[Chain]:
    """Pairs of layers between which there are only operations on each unit alone.

    Raises:
        ConversionFailed: torch.fx cannot follow the network's `forward`, or there is no such pair.
    """
    try:
        graph = fx.symbolic_trace(network).graph
    except Exception as failure:  # tracing runs the user's code, which may raise anything
        reason = (str(failure).strip().splitlines() or [type(failure).__name__])[0]
        raise ConversionFailed(f"{type(network).__name__} cannot be traced: {reason}") from failure
    layers = layers_of(network)
    uses = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    found = [chain for node in graph.nodes if _is_layer(node, layers) and (chain := _chain_from(node, network, layers))]
    chains = [chain for chain in found if uses[chain.makes] == uses[chain.reads] == 1]
    if not chains:
        raise ConversionFailed(
            f"{type(network).__name__} has no hidden layer between two linear ones, nor between convolutions"
        )
    return chains


def _chain_from(node: fx.Node, network: nn.Module, layers: dict[str, Layer]) -> Chain | None:
    """To the layer that alone reads what a node makes; None: there is none that could do without some of it."""
    makes = str(node.target)
    maker, is_flat = layers[makes], False
    has_channels = isinstance(maker, nn.Conv2d)
    for user in _only_users(node):
        if _is_layer(user, layers):
            return _joined(makes, str(user.target), layers, is_flat=is_flat)
        if has_channels and not is_flat and _is_flatten(user, network):
            is_flat = True
        elif not (_is_unitwise(user, network) or (has_channels and not is_flat and _is_channelwise(user, network))):
            return None
    return None


def _joined(makes: str, reads: str, layers: dict[str, Layer], *, is_flat: bool) -> Chain | None:
    maker, reader = layers[makes], layers[reads]
    if isinstance(maker, nn.Conv2d) and isinstance(reader, nn.Linear):
        # Unless it was flattened, a linear layer reads along the width of the image, not its channels.
        whole = is_flat and reader.in_features % maker.out_channels == 0
        return Chain(makes, reads, reader.in_features // maker.out_channels) if whole else None
    return Chain(makes, reads) if type(maker) is type(reader) and not is_flat else None


def _only_users(node: fx.Node) -> Iterator[fx.Node]:
    while len(node.users) == 1:
        node = next(iter(node.users))
        yield node


def _is_layer(node: fx.Node, layers: dict[str, Layer]) -> bool:
    return node.op == "call_module" and str(node.target) in layers


def _is_unitwise(node: fx.Node, network: nn.Module) -> bool:
    if node.op == "call_module":
        return isinstance(network.get_submodule(str(node.target)), UNITWISE_MODULES)
    if node.op == "call_function":
        return node.target in UNITWISE_FUNCTIONS
    return node.op == "call_method" and node.target in UNITWISE_METHODS


def _is_channelwise(node: fx.Node, network: nn.Module) -> bool:
    if node.op == "call_module":
        return isinstance(network.get_submodule(str(node.target)), CHANNELWISE_MODULES)
    return node.op == "call_function" and node.target in CHANNELWISE_FUNCTIONS


def _is_flatten(node: fx.Node, network: nn.Module) -> bool:
    """From (n, channels, height, width) to (n, everything), a channel's numbers side by side."""
    if node.op == "call_module":
        module = network.get_submodule(str(node.target))
        return isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1)
    is_named = node.target is torch.flatten if node.op == "call_function" else node.target == "flatten"
    arguments = (*node.args[1:], *node.kwargs.values())
    return node.op in ("call_function", "call_method") and is_named and arguments in ((1,), (1, -1))
