"""Which server of parameters holds what, and its part of a network as one vector."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from modelyard.errors import ConfigError


def deal(sizes: Sequence[int], count: int) -> list[list[int]]:
    """Numbers of things of these sizes for each of ``count`` holders: the largest first, each to whom has least.

    Raises:
        ConfigError: somebody would have none.
    """
    if count > len(sizes):
        raise ConfigError(
            "train.parameter_server.servers",
            f"{count} servers for a network of {len(sizes)} parameters; at most one each",
        )
    dealt: list[list[int]] = [[] for _ in range(count)]
    for number in sorted(range(len(sizes)), key=lambda one: -sizes[one]):
        least = min(range(count), key=lambda holder: (sum(sizes[one] for one in dealt[holder]), holder))
        dealt[least].append(number)
    return [sorted(numbers) for numbers in dealt]


class Holding:
    """The parameters of one server, as a vector (size,) where they travel."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self._sizes = [parameter.numel() for parameter in parameters]
        self.size = sum(self._sizes)
        self._members = {id(parameter) for parameter in parameters}

    def __contains__(self, parameter: nn.Parameter) -> bool:
        return id(parameter) in self._members

    def gathered(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Tensors of the parameters' shapes, one after the other."""
        return torch.cat([tensor.detach().flatten() for tensor in tensors])

    def spread_(self, vector: torch.Tensor, tensors: Sequence[torch.Tensor]) -> None:
        """The way back."""
        for tensor, values in zip(tensors, vector.split(self._sizes), strict=True):
            tensor.detach().copy_(values.view(tensor.shape))

    def gradient(self) -> torch.Tensor:
        """Of every parameter; zeros where it played no part."""
        return self.gathered(
            [torch.zeros_like(one) if one.grad is None else _whole(one.grad) for one in self.parameters]
        )

    def squares(self) -> torch.Tensor:
        """Sum of the squares of `gradient`, on the CPU."""
        return self.gradient().double().square().sum().cpu()

    def take_gradient_(self, vector: torch.Tensor) -> None:
        for parameter, values in zip(self.parameters, vector.split(self._sizes), strict=True):
            parameter.grad = values.view(parameter.shape).to(parameter.device)


def _whole(gradient: torch.Tensor) -> torch.Tensor:
    """With zeros for the rows of a table that a batch does not name: what travels is one vector."""
    return gradient.to_dense() if gradient.is_sparse else gradient
