"""Ranks that train by themselves between rare outer steps: DiLoCo, Douillard et al. 2023, arXiv 2311.08105.

All ranks begin a round with the same weights. Each takes its share of every batch and steps on its own gradient, with an
optimizer of its own. When the round ends, the mean of what ranks moved away is taken for a gradient, and SGD with
Nesterov's momentum moves the weights they began with, which all go on from. Ranks exchange weights once a round.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import distributed, nn

from modelyard.train.first_weights import plain_name
from modelyard.train.rows import Rows
from modelyard.train.snapshots import MODEL, load_optimizers_, optimizer_tensors
from modelyard.train.stepper import Stepper
from modelyard.train.strategy_config import DilocoConfig

SINCE, WEIGHTS, STATE, MOMENTUM = "diloco.since", "diloco.weights.", "diloco.optimizer.", "diloco.momentum."


class Outer:
    """The weights that all ranks shared last, and what moves them: the same on every rank."""

    def __init__(self, parameters: dict[str, nn.Parameter], config: DilocoConfig) -> None:
        self._parameters = parameters
        self.weights = {name: nn.Parameter(value.detach().clone()) for name, value in parameters.items()}
        self._optimizer = torch.optim.SGD(
            self.weights.values(), lr=config.learning_rate, momentum=config.momentum, nesterov=config.momentum > 0
        )

    @torch.no_grad()
    def step_(self) -> None:
        """Move the shared weights by the mean of the ranks' ways, and put every rank there. A collective."""
        ways = [self.weights[name] - value for name, value in self._parameters.items()]
        vector = torch.cat([way.flatten() for way in ways])
        distributed.all_reduce(vector)
        vector /= distributed.get_world_size()
        for weight, way in zip(self.weights.values(), vector.split([way.numel() for way in ways]), strict=True):
            weight.grad = way.view(weight.shape)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        for name, value in self._parameters.items():
            value.copy_(self.weights[name])

    @property
    def momentum(self) -> dict[str, torch.Tensor]:
        """By weight; nothing before the first outer step."""
        found = {name: self._optimizer.state[weight].get("momentum_buffer") for name, weight in self.weights.items()}
        return {name: value for name, value in found.items() if value is not None}

    @torch.no_grad()
    def begin_(self, momentum: dict[str, torch.Tensor]) -> None:
        """A new round from the network's weights as they are."""
        self._optimizer.state.clear()
        for name, weight in self.weights.items():
            weight.copy_(self._parameters[name])
            if name in momentum:
                self._optimizer.state[weight]["momentum_buffer"] = momentum[name].to(weight.device, copy=True)


class DilocoStepper(Stepper):
    """A rank that trains by itself within a round."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        named = {name: value for name, value in self.network.named_parameters() if value.requires_grad}
        self._names = {name: plain_name(name) for name in named}
        self._own = {self._names[name]: value for name, value in named.items()}
        self.outer = Outer(self._own, self.config.diloco)
        self._since = 0  # steps of this round

    def step(self, split: Rows, rows: torch.Tensor, number: int, rate: float) -> torch.Tensor:
        own = self.part.of(rows)
        self._zero_grad()
        if len(own):  # at an epoch's end there may be fewer rows than ranks
            total = self._accumulate(split, own, 1 / len(own), self._num_passes(len(rows)))
            self._apply(number, rate)
        else:
            total = torch.zeros((), dtype=torch.float64, device=self.device)
        self._since += 1
        if self._since == self.config.diloco.every_steps:
            self.settle_()
        return total

    def settle_(self) -> None:
        """End the round, if one has begun."""
        if self._since:
            self.outer.step_()
            self._since = 0

    def forget_state(self) -> None:
        super().forget_state()
        self.outer.begin_({})
        self._since = 0

    def shared(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Rank 0 speaks for all: the weights that the round began with, and its own optimizer's state, for whoever goes on
        with another number of ranks or another strategy."""
        if self.rank:
            return {}
        return {**tensors, **{MODEL + name: weight.detach() for name, weight in self.outer.weights.items()}}

    def own_tensors(self) -> dict[str, torch.Tensor]:
        state = optimizer_tensors(self.network, self.optimizers)
        found = {STATE + name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
        found |= {SINCE: torch.tensor([self._since])}
        if self._since:
            found |= {WEIGHTS + name: value.detach() for name, value in self._own.items()}
        if self.rank == 0:
            found |= {MOMENTUM + name: value for name, value in self.outer.momentum.items()}
        return found

    @torch.no_grad()
    def restore_own_(self, files: Sequence[Path]) -> None:
        """With as many ranks as before each goes on in its round; else all begin one where the last began."""
        self.outer.begin_(_below(load_file(files[0]), MOMENTUM))
        self._since = 0
        own = load_file(files[self.rank]) if len(files) == self.world_size else {}
        if SINCE not in own:
            return
        load_optimizers_(self.network, self.optimizers, _below(own, STATE))
        self._since = int(own[SINCE])
        for name, value in _below(own, WEIGHTS).items():
            self._own[name].copy_(value)


def _below(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
