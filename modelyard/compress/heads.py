"""Attention heads: where a network has them, how much each matters, and the network without the least important ones."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from modelyard.errors import ConversionFailed
from modelyard.transform.text import PORTION_TOKENS

# What networks of `transformers`, and our own, call the layers of one attention: queries, keys, values, and the one that
# reads the heads, seen from the module that holds the first three.
NAMES = (
    ("query", "key", "value", "^output.dense"),
    ("q_lin", "k_lin", "v_lin", "out_lin"),
    ("q_proj", "k_proj", "v_proj", "o_proj"),
    ("q_proj", "k_proj", "v_proj", "out_proj"),
)
WIDTHS = ("attention_head_size", "head_dim", "_head_width")
CHECKED_ROWS = 4
# Of the largest output: two ways of summing the same numbers.
TOLERANCE = 1e-4

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Attention:
    """One attention of a network, by the names of its layers.

    Attributes:
        heads: that can go: those of keys and values. Where several queries share one they go with it.
        width: numbers a head of keys and values has.
        read_width: numbers that the output layer reads of one: ``width`` times the queries that share it.
    """

    queries: str
    keys: str
    values: str
    output: str
    heads: int
    width: int
    read_width: int


def attentions(network: nn.Module) -> list[Attention]:
    """Every attention whose layers are known by name.

    Raises:
        ConversionFailed: there are none.
    """
    modules = dict(network.named_modules())
    found = [one for name in modules for names in NAMES if (one := _attention(modules, name, names))]
    if not found:
        raise ConversionFailed(f"{type(network).__name__} has no attention whose queries, keys and values are known")
    return found


def loss_of(name: str) -> Loss:
    """The loss of a task kind, summed over rows.

    Raises:
        ConversionFailed: heads are not judged by it.
    """
    known: dict[str, Loss] = {
        "cross_entropy": lambda outputs, targets: nn.functional.cross_entropy(outputs, targets, reduction="sum"),
        "mean_squared_error": lambda outputs, targets: (outputs.reshape(targets.shape) - targets).square().sum(),
    }
    if name not in known:
        raise ConversionFailed(f"the importance of heads is not known for the loss {name}")
    return known[name]


def importances(
    network: nn.Module, found: list[Attention], rows: Tensor, targets: Tensor, loss: Loss
) -> dict[str, Tensor]:
    """Name of an attention's output layer -> (heads,): the mean over rows of |d loss / d gate|, where a gate of 1 lies on each
    head's outputs (Michel et al. 2019, arXiv 1905.10650), of length 1 for each layer as they advise.
    """
    sums = {one.output: torch.zeros(one.heads) for one in found}
    for some, wanted in zip(_portions(rows), _portions(targets, rows), strict=True):
        gates = {one.output: torch.ones(len(some), one.heads, requires_grad=True) for one in found}
        with torch.enable_grad(), _changed_inputs(network, {one.output: _gated(gates[one.output]) for one in found}):
            gradients = torch.autograd.grad(loss(network(some), wanted), list(gates.values()))
        for name, gradient in zip(gates, gradients, strict=True):
            sums[name] += gradient.abs().sum(dim=0)
    return {name: total / total.norm().clamp(min=1e-12) for name, total in sums.items()}


def kept_heads(importance: Mapping[str, Tensor], fraction: float) -> dict[str, Tensor]:
    """Which heads stay, in order, when that fraction of all of them goes; each layer keeps its most important one."""
    ranked = sorted(
        (float(value), name, head) for name, values in importance.items() for head, value in enumerate(values)
    )
    last = {name: int(values.argmax()) for name, values in importance.items()}
    going = [(name, head) for _, name, head in ranked if head != last[name]][: int(fraction * len(ranked))]
    return {
        name: torch.tensor([head for head in range(len(values)) if (name, head) not in going])
        for name, values in importance.items()
    }


def prune_heads_(network: nn.Module, found: list[Attention], kept: Mapping[str, Tensor], rows: Tensor) -> list[str]:
    """Take heads out, in place; what they said on average goes to the bias of the layer that reads them, if it has one.

    Returns:
        Names of the layers that are narrower now.

    Raises:
        ConversionFailed: the network computes something else with fewer heads than without what they say.
    """
    changed = []
    fills = {
        one.output: (_columns(kept[one.output], one.read_width), _mean_inputs(network, one, rows)) for one in found
    }
    expected = _without(network, fills, rows[:CHECKED_ROWS])
    for one in found:
        if len(kept[one.output]) == one.heads:
            continue
        columns, mean = fills[one.output]
        shared = _columns(kept[one.output], one.width)
        for name, places in ((one.queries, columns), (one.keys, shared), (one.values, shared)):
            _keep_outputs_(network.get_submodule(name), places)
        _keep_inputs_(network.get_submodule(one.output), columns, mean)
        changed += [one.queries, one.keys, one.values, one.output]
    if not changed:
        raise ConversionFailed("no head is left over at this fraction: every layer keeps one")
    difference = float((network(rows[:CHECKED_ROWS]) - expected).abs().max() / expected.abs().max().clamp(min=1))
    if not difference <= TOLERANCE:
        raise ConversionFailed(f"{type(network).__name__} computes something else with fewer heads ({difference:.2g})")
    return changed


# -- details ----------------------------------------------------------------------------------------------


def _attention(modules: Mapping[str, nn.Module], name: str, names: tuple[str, str, str, str]) -> Attention | None:
    parent = name.rpartition(".")[0]
    paths = [f"{parent}.{one[1:]}" if one.startswith("^") else f"{name}.{one}".lstrip(".") for one in names]
    layers = [modules.get(path) for path in paths]
    width = next((getattr(modules[name], one) for one in WIDTHS if hasattr(modules[name], one)), None)
    if width is None or not all(isinstance(layer, nn.Linear) for layer in layers):
        return None
    queries, keys, values, output = (layer for layer in layers if isinstance(layer, nn.Linear))
    heads = keys.out_features // width
    fits = keys.out_features == values.out_features and queries.out_features == output.in_features
    if not heads or not fits or queries.out_features % heads:
        return None
    return Attention(*paths, heads=heads, width=width, read_width=queries.out_features // heads)


def _columns(heads: Tensor, width: int) -> Tensor:
    return (heads[:, None] * width + torch.arange(width)).flatten()


def _portions(values: Tensor, rows: Tensor | None = None) -> tuple[Tensor, ...]:
    """Some rows at a time, so that what attention holds of them stays small."""
    like = values if rows is None else rows
    return values.split(max(1, PORTION_TOKENS // like.shape[1]))


def _gated(gate: Tensor) -> Callable[[Tensor], Tensor]:
    """Inputs (n, t, heads * width) with each head's times its gate (n, heads)."""
    return lambda given: (given.unflatten(-1, (gate.shape[1], -1)) * gate[:, None, :, None]).flatten(-2)


def _mean_inputs(network: nn.Module, one: Attention, rows: Tensor) -> Tensor:
    """What the output layer reads on average over the tokens that are there: (in,)."""
    layer = network.get_submodule(one.output)
    assert isinstance(layer, nn.Linear)
    if layer.bias is None:
        return torch.zeros(layer.in_features)
    sums, seen = torch.zeros(layer.in_features), 0
    for some in _portions(rows):
        here = some >= 0

        def keep(given: Tensor, here: Tensor = here) -> Tensor:
            nonlocal sums
            sums = sums + given[here].sum(dim=0)
            return given

        with _changed_inputs(network, {one.output: keep}):
            network(some)
        seen += int(here.sum())
    return sums / max(seen, 1)


def _without(network: nn.Module, fills: Mapping[str, tuple[Tensor, Tensor]], rows: Tensor) -> Tensor:
    """Outputs where what goes is replaced by its mean: what the smaller network has to compute."""

    def filled(columns: Tensor, mean: Tensor) -> Callable[[Tensor], Tensor]:
        def change(given: Tensor) -> Tensor:
            changed = mean.expand_as(given).clone()
            changed[..., columns] = given[..., columns]
            return changed

        return change

    with _changed_inputs(network, {name: filled(*fill) for name, fill in fills.items()}):
        return network(rows)


@contextmanager
def _changed_inputs(network: nn.Module, changes: Mapping[str, Callable[[Tensor], Tensor]]) -> Generator[None]:
    """Layers that read something else than they are given."""
    hooks = [
        network.get_submodule(name).register_forward_pre_hook(lambda _, given, change=change: (change(given[0]),))
        for name, change in changes.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _keep_outputs_(layer: nn.Module, places: Tensor) -> None:
    assert isinstance(layer, nn.Linear)
    layer.weight, layer.out_features = nn.Parameter(layer.weight[places]), len(places)
    if layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias[places])


def _keep_inputs_(layer: nn.Module, places: Tensor, mean: Tensor) -> None:
    assert isinstance(layer, nn.Linear)
    if layer.bias is not None:
        gone = torch.ones(layer.in_features, dtype=torch.bool)
        gone[places] = False
        layer.bias.data += layer.weight[:, gone] @ mean[gone]
    layer.weight, layer.in_features = nn.Parameter(layer.weight[:, places]), len(places)
