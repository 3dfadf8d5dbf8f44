"""Learning from what a teacher's layers say, beside its answers.

The distance between hidden states of chosen layers: squared, with a learned linear projection where widths differ (FitNets,
Romero et al. 2015, arXiv 1412.6550), or by the cosine (DistilBERT, Sanh et al. 2019, arXiv 1910.01108). The projection
is whole on each rank and moves as the network does; checkpoints hold it, the result does not.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import distributed, nn

from modelyard.errors import ConfigError
from modelyard.train.optimizers import build_optimizers
from modelyard.train.sections import HiddenConfig, OptimizerConfig

FIELD = "train.distill.hidden.layers"
SHOWN = 12


class HiddenStates:
    """The chosen layers of a student and of its teacher, as they compute.

    Args:
        student: plain, not yet spread over ranks; it may be spread in place afterwards.
        examples: features (n, ...) of some rows as the student and as the teacher take them.
        device: of the steps to come.
        seed: of the projections' first weights.

    Raises:
        ConfigError: there is no such layer, or two of a pair do not speak of the same places.
    """

    def __init__(
        self,
        config: HiddenConfig,
        optimizer: OptimizerConfig,
        student: nn.Module,
        teacher: nn.Module,
        *,
        examples: tuple[torch.Tensor, torch.Tensor],
        device: torch.device,
        seed: int,
    ) -> None:
        self._config, self._optimizer, self._device, self._seed = config, optimizer, device, seed
        self._pairs = paired(config.layers, student, teacher)
        self._own = _Listener(student, [own for own, _ in self._pairs])
        self._its = _Listener(teacher, [its for _, its in self._pairs])
        shapes = zip(_heard(student, self._own, examples[0]), _heard(teacher, self._its, examples[1]), strict=True)
        self._widths = [_widths(pair, *found) for pair, found in zip(self._pairs, shapes, strict=True)]
        self.forget_state()

    def forget_state(self) -> None:
        """Projections as before the first step."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed)
            made = {str(number): nn.Linear(own, its) for number, (own, its) in enumerate(self._widths) if own != its}
        self.projections = nn.ModuleDict(made).to(self._device)
        self.optimizers = build_optimizers(self._optimizer, self.projections, self._device) if made else []

    def listen(self) -> None:
        """Keep what the layers say in the forward passes that follow, until `loss`."""
        self._own.is_on = self._its.is_on = True

    def loss(self, features: torch.Tensor) -> torch.Tensor:
        """The weighted mean over pairs of the distance of each row, summed over rows (n, ...) that both just computed. Of two
        texts, (n, 2, t), which networks read one below the other, a row's distance is the mean."""
        texts = features.shape[1] if features.ndim == 3 and not features.is_floating_point() else 1
        read = features.flatten(0, 1) if texts > 1 else features
        states = list(zip(self._own.take(), self._its.take(), strict=True))
        summed = [self._distance(number, *pair, read) for number, pair in enumerate(states)]
        return self._config.weight * torch.stack(summed).mean() / texts

    def _distance(self, number: int, own: torch.Tensor, its: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        # A network that is asked about no row may have computed one that nobody asked for.
        own, its = own[: len(features)].float(), its[: len(features)].float()
        if str(number) in self.projections:
            own = self.projections[str(number)](own)
        if self._config.loss == "cosine":
            each = 1 - nn.functional.cosine_similarity(own, its, dim=-1)
        else:
            each = (own - its).square().mean(-1)
        if each.ndim == 1:
            return each.sum()
        if not features.is_floating_point() and features.shape == each.shape:
            here = features >= 0  # the rest fills up a batch
            return ((each * here).sum(1) / here.sum(1).clamp(min=1)).sum()
        return each.flatten(1).mean(1).sum()

    def zero_grad(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def step(self, rate: float) -> None:
        """Move the projections by the mean of the ranks' gradients. A collective where there are any."""
        weights = list(self.projections.parameters())
        if not weights:
            return
        for weight in weights:
            weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
        vector = torch.cat([weight.grad.flatten() for weight in weights if weight.grad is not None])
        if distributed.get_world_size() > 1:
            distributed.all_reduce(vector)
            vector /= distributed.get_world_size()
        for weight, mean in zip(weights, vector.split([weight.numel() for weight in weights]), strict=True):
            weight.grad = mean.view(weight.shape)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()


class _Listener:
    """What chosen parts of a network put out, places before width."""

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        self.is_on = False
        self._names, self._heard = names, dict[str, torch.Tensor]()
        for name in dict.fromkeys(names):
            network.get_submodule(name).register_forward_hook(lambda *told, name=name: self._keep(name, told[2]))

    def _keep(self, name: str, output: Any) -> None:
        if self.is_on:
            states = output if isinstance(output, torch.Tensor) else output[0]
            # Channels of an image come before its places.
            self._heard[name] = states.movedim(1, -1) if states.ndim == 4 else states

    def take(self) -> list[torch.Tensor]:
        """Of each layer; nothing is heard any more: recomputed activations are not asked for."""
        heard, self._heard, self.is_on = self._heard, {}, False
        return [heard[name] for name in self._names]


def paired(layers: int | Mapping[str, str], student: nn.Module, teacher: nn.Module) -> list[tuple[str, str]]:
    """Names of the layers that are compared: those said, or so many, evenly by depth. Networks may be on the meta device.

    Raises:
        ConfigError: there is no such layer, with the nearest there are, or not as many.
    """
    if not isinstance(layers, int):
        return [
            (_named(student, own, "the network"), _named(teacher, its, "the teacher")) for own, its in layers.items()
        ]
    own, its = _depths(student), _depths(teacher)
    if layers > min(len(own), len(its)):
        raise ConfigError(
            FIELD,
            f"{layers} layers of {len(own)} of the network and {len(its)} of the teacher: name them, or take fewer",
        )
    ends = range(1, layers + 1)
    return [(own[end * len(own) // layers - 1], its[end * len(its) // layers - 1]) for end in ends]


def _depths(network: nn.Module) -> list[str]:
    """The parts with weights of its longest list of parts, without what makes the outputs."""
    weighted = [name for name, part in network.named_modules() if name and any(True for _ in part.parameters())]
    lists = [
        [f"{name}.{child}" if name else child for child, _ in part.named_children()]
        for name, part in network.named_modules()
        if isinstance(part, nn.ModuleList | nn.Sequential)
    ]
    last = weighted[-1] if weighted else ""
    found = [[name for name in names if name in weighted and name != last] for names in lists]
    return max(found, key=len, default=[])


def _named(network: nn.Module, name: str, whose: str) -> str:
    known = [one for one, _ in network.named_modules() if one]
    if name in known:
        return name
    close = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {', '.join(close)}? " if close else ""
    more = ", ..." if len(known) > SHOWN else ""
    raise ConfigError(FIELD, f"{whose} has no part {name!r}; {hint}There are {', '.join(known[:SHOWN])}{more}")


def _heard(network: nn.Module, listener: _Listener, example: torch.Tensor) -> list[torch.Size]:
    """Shapes of what the layers put out, without a trace on the network or the random streams."""
    was_training, generators = network.training, torch.get_rng_state()
    listener.is_on = True
    with torch.no_grad():
        network.eval()(example.to(next(network.parameters()).device))
    torch.set_rng_state(generators)
    network.train(was_training)
    return [states.shape for states in listener.take()]


def _widths(pair: tuple[str, str], own: torch.Size, its: torch.Size) -> tuple[int, int]:
    if own[1:-1] != its[1:-1]:
        told = [f"({', '.join(['n', *map(str, shape[1:])])})" for shape in (own, its)]
        raise ConfigError(
            FIELD, f"{pair[0]} gives {told[0]}, the teacher's {pair[1]} {told[1]}: only the width may differ"
        )
    return own[-1], its[-1]
