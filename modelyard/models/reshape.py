"""Layers of a network replaced by ones of other shapes."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from modelyard.errors import DataError
from modelyard.models.config import LinearShape


def reshape_(network: nn.Module, shapes: Mapping[str, LinearShape]) -> nn.Module:
    """Give the named layers new shapes, with untrained weights, in place.

    Raises:
        DataError: there is no linear or convolutional layer of that name.
    """
    for name, shape in shapes.items():
        old = dict(network.named_modules()).get(name)
        if isinstance(old, nn.Linear):
            replace_(network, name, linear_of(shape, bias=old.bias is not None))
        elif isinstance(old, nn.Conv2d) and shape.rank is None:
            replace_(network, name, convolution_of(shape, old))
        else:
            raise DataError(f"{type(network).__name__} has no layer {name!r} to reshape; did its code change?")
    return network


def convolution_of(shape: LinearShape, old: nn.Conv2d) -> nn.Conv2d:
    """An untrained convolution like another, with other numbers of channels."""
    return nn.Conv2d(
        shape.inputs,
        shape.outputs,
        kernel_size=old.kernel_size,  # ty: ignore[invalid-argument-type] (torch keeps what it was given as tuples)
        stride=old.stride,  # ty: ignore[invalid-argument-type]
        padding=old.padding,  # ty: ignore[invalid-argument-type]
        dilation=old.dilation,  # ty: ignore[invalid-argument-type]
        bias=old.bias is not None,
    )


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
