"""Linear layers of a network replaced by ones of other shapes."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from modelyard.errors import DataError
from modelyard.models.config import LinearShape


def reshape_(network: nn.Module, shapes: Mapping[str, LinearShape]) -> nn.Module:
    """Give the named linear layers new shapes, with untrained weights, in place.

    Raises:
        DataError: there is no linear layer of that name.
    """
    for name, shape in shapes.items():
        old = dict(network.named_modules()).get(name)
        if not isinstance(old, nn.Linear):
            raise DataError(f"{type(network).__name__} has no linear layer {name!r} to reshape; did its code change?")
        replace_(network, name, linear_of(shape, bias=old.bias is not None))
    return network


def linear_of(shape: LinearShape, *, bias: bool) -> nn.Module:
    """An untrained layer, or two in a row, of that shape."""
    if shape.rank is None:
        return nn.Linear(shape.inputs, shape.outputs, bias=bias)
    return nn.Sequential(
        nn.Linear(shape.inputs, shape.rank, bias=False), nn.Linear(shape.rank, shape.outputs, bias=bias)
    )


def replace_(network: nn.Module, name: str, layer: nn.Module) -> None:
    """Put a layer in the place of another."""
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, layer)
