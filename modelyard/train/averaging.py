"""A moving average of the weights, beside those that are trained."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import nn


class WeightAverage:
    """Exponential moving average of every trained parameter (Polyak and Juditsky 1992).

    The decay grows as (1 + steps) / (10 + steps) up to its limit, so that early weights do not linger.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._decay = decay
        self._parameters = {name: value for name, value in network.named_parameters() if value.requires_grad}
        self._names = {id(parameter): name for name, parameter in self._parameters.items()}
        self.weights = {name: value.detach().clone() for name, value in self._parameters.items()}

    def of(self, parameter: nn.Parameter) -> torch.Tensor:
        """The average of one parameter."""
        return self.weights[self._names[id(parameter)]]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after the step numbered ``step`` (from 0)."""
        kept = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.weights.values()), list(self._parameters.values()), 1 - kept)

    @contextmanager
    def in_place(self) -> Generator[None]:
        """The network computes with the average while the block runs."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self._parameters.items():
            trained = parameter.detach().clone()
            parameter.copy_(self.weights[name])
            self.weights[name].copy_(trained)
