"""One optimizer step on a global batch: tensors in, summed loss out.

The loss is scaled so that a step's gradient is the mean over the global batch, however unevenly its rows fall on the
ranks and on the passes of accumulation. `Stepper` is for strategies whose ranks all step alike; those of the others build
on it (`strategies.py` says which).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import distributed, nn
from torch.optim import Optimizer

from modelyard.errors import ConfigError
from modelyard.train.averaging import WeightAverage
from modelyard.train.config import TrainConfig
from modelyard.train.distillation import Teacher
from modelyard.train.first_weights import draw_, is_on_meta
from modelyard.train.losses import Loss
from modelyard.train.optimizers import build_optimizers
from modelyard.train.parallelize import gradient_sync, parallelize
from modelyard.train.precision import Precision
from modelyard.train.rows import Rows
from modelyard.train.schedules import rate_fraction
from modelyard.train.strategy_config import SHARDED


@dataclass
class Watch:
    """Seconds spent on something since they were last asked for."""

    seconds: float = 0.0
    _began: float = field(default=0.0, repr=False)

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._began

    def take(self) -> float:
        taken, self.seconds = self.seconds, 0.0
        return taken


class Step(NamedTuple):
    """One step to be made: the rows (n,) of its global batch, its number (from 0), its learning rate."""

    rows: torch.Tensor
    number: int
    rate: float


class Part(NamedTuple):
    """Which of some rows are a rank's: every ``count``-th, from ``index`` on."""

    index: int
    count: int

    def of(self, rows: torch.Tensor) -> torch.Tensor:
        return rows[self.index :: self.count]


class Tally(NamedTuple):
    """What this rank made of its rows: their loss summed up, and how many they were."""

    loss: torch.Tensor
    rows: int


class Stepper:
    """A network on one rank, with everything that moves its weights.

    Attributes:
        part: this rank's share of a step's rows.
        judged: this rank's share of rows that are validated.
        counts: what this rank finds is summed up; false where another one finds the same.
        streams: rank whose random streams this one draws from: its own, but for those that see the same rows.
        runs_ahead: ranks do not step together between two meetings.
        stored: what a network on the meta device begins with; None: what is drawn.
    """

    runs_ahead = False

    def __init__(
        self,
        config: TrainConfig,
        network: nn.Module,
        device: torch.device,
        loss: Loss,
        *,
        example: torch.Tensor,
        note: Callable[[str], None],
        teacher: Teacher | None = None,
    ) -> None:
        self.config = config
        self.device = device
        self.rank = distributed.get_rank()
        self.world_size = distributed.get_world_size()
        size = config.tensor.size if config.strategy == "tensor" else 1
        self.part = self.judged = Part(self.rank // size, self.world_size // size)
        self.counts = self.rank % size == 0
        self.streams = self.rank - self.rank % size
        self._draws = is_on_meta(network)
        self.stored: dict[str, torch.Tensor] | None = None
        self.network = network if self._draws else network.to(device)
        self.precision = Precision(config.precision, device, cast_by_strategy=config.strategy in SHARDED)

        def trial(module: nn.Module) -> None:
            with self.precision.autocast():
                outputs = module(example.to(device))
            outputs.float().sum().backward()

        self.parallel = parallelize(self.network, config, device, trial, note)
        self.optimizers = self._build_optimizers()
        self.average = self._build_average()
        self.data_wait = Watch()
        self._norm: torch.Tensor | None = None  # of the last gradient that was clipped
        self._loss, self._teacher = loss, teacher
        self.hidden = teacher.hidden if teacher else None
        self._masks = zero_masks(self.network) if config.init.keep_zeros else {}

    def _build_optimizers(self) -> list[Optimizer]:
        return build_optimizers(self.config.optimizer, self.network, self.device)

    def _build_average(self) -> WeightAverage | None:
        return WeightAverage(self.network, self.config.ema_decay) if self.config.ema_decay else None

    def draw_(self, alive: Callable[[], None]) -> None:
        """The first weights, of a network that came without any. Every rank calls this; ``alive`` is called meanwhile."""
        if self._draws:
            self.average = None  # of weights without values; its room is needed
            draw_(self.network, self.config.seed, alive, self.stored)
            self.stored = None
            self.average = self._build_average()

    def forget_state(self) -> None:
        """Optimizers, average and loss scale as before the first step, around the weights as they are."""
        self.optimizers, self.average = self._build_optimizers(), self._build_average()
        if self.hidden:
            self.hidden.forget_state()
        self.precision = Precision(self.config.precision, self.device, cast_by_strategy=self.config.strategy in SHARDED)

    def advance(self, split: Rows, steps: Sequence[Step]) -> Tally:
        """Make steps, one after the other; every rank is given the same."""
        losses = [self.step(split, *step) for step in steps]
        if not self.counts:
            return Tally(torch.zeros_like(losses[0]), 0)
        rows = sum(len(self.part.of(step.rows)) for step in steps)
        return Tally(losses[0] if len(losses) == 1 else torch.stack(losses).sum(), rows)

    def step(self, split: Rows, rows: torch.Tensor, number: int, rate: float) -> torch.Tensor:
        """One step on the global batch ``rows``.

        Args:
            number: of this step, from 0.
            rate: learning rate of this step.

        Returns:
            The loss summed over this rank's rows.
        """
        self._zero_grad()
        # Ranks are averaged over: this scale makes it the mean over the batch.
        total = self._accumulate(split, self.part.of(rows), self.part.count / len(rows), self._num_passes(len(rows)))
        self._apply(number, rate)
        return total

    def outputs(self, features: torch.Tensor) -> torch.Tensor:
        """What the network makes of rows, in fp32."""
        with self.precision.autocast():
            # Without DDP around it: that would synchronise buffers, and ranks may have unequal numbers of batches.
            return self.network(features.to(self.device)).float()

    def settle_(self) -> None:
        """Bring together what ranks have learned by themselves, before it is validated."""

    @torch.no_grad()
    def align_(self) -> None:
        """Make every rank's network the one that counts, before it is validated or saved: buffers (running statistics,
        say) as rank 0 has them, as ddp does at its next step anyway."""
        if self.config.strategy not in SHARDED and self.world_size > 1:
            for buffer in self.network.buffers():
                distributed.broadcast(buffer, src=0)

    def gradient_norm(self) -> float:
        """Norm of the last step's gradient, before it was clipped. Every rank must ask: it may be a collective."""
        if self._norm is not None:
            return float(whole(self._norm))
        gradients = [dense(one.grad) for one in self.network.parameters() if one.grad is not None]
        return float(whole(nn.utils.get_total_norm(gradients)))

    def shared(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Of the tensors that ranks share, those that this one adds to a checkpoint."""
        return tensors

    def own_tensors(self) -> dict[str, torch.Tensor]:
        """What a checkpoint needs of this rank alone, besides its random streams."""
        return {}

    def restore_own_(self, files: Sequence[Path]) -> None:
        """Take in what ``own_tensors`` of each rank gave, a file of safetensors a rank in their order, once what ranks
        share is in place. There may have been another number of ranks, or another strategy."""

    def figures(self) -> dict[str, float]:
        """What else is worth watching since it was last asked for."""
        return {}

    def _accumulate(self, split: Rows, rows: torch.Tensor, scale: float, num_passes: int) -> torch.Tensor:
        """Gradients of ``scale`` times the loss over this rank's ``rows``, in several passes; the loss itself."""
        passes = rows.tensor_split(num_passes)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for number, share in enumerate(passes, 1):
            with self.data_wait:
                batch = split.batch(share)
                features, targets = batch.features.to(self.device), batch.targets.to(self.device)
            if self.hidden:
                self.hidden.listen()
            with gradient_sync(self.parallel, wanted=number == len(passes)):
                with self.precision.autocast():
                    outputs = self.parallel(features)
                summed = self._loss(outputs.float(), targets)
                if self._teacher:
                    seen = features if batch.teacher_features is None else batch.teacher_features.to(self.device)
                    summed = self._teacher.mixed(summed, outputs.float(), targets, seen)
                self.precision.backward(summed, scale)
            total += summed.detach().double()
        return total

    def _apply(self, number: int, rate: float) -> None:
        """Move the weights by the gradients that are there."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        self.precision.unscale_(self.optimizers)
        self._keep_zeros_(gradients=True)
        if self.config.clip_norm:
            self._clip_()
        self.precision.step(self.optimizers)
        if self.hidden:
            self.hidden.step(rate)
        self._keep_zeros_(gradients=False)  # muon's update of a matrix does not keep those of its gradient
        if self.average:
            self.average.update(number)

    def _clip_(self) -> None:
        self._norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip_norm)

    @torch.no_grad()
    def _keep_zeros_(self, *, gradients: bool) -> None:
        for parameter, mask in self._masks.items():
            values = parameter.grad if gradients else parameter
            if values is not None:
                values.mul_(mask)

    def _num_passes(self, num_rows: int) -> int:
        """For a batch of so many rows over all ranks."""
        if self.config.optimizer.name == "gd":
            return -(-num_rows // self.config.batch_size)
        return self.config.accumulate

    def _zero_grad(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        if self.hidden:
            self.hidden.zero_grad()


def zero_masks(network: nn.Module) -> dict[nn.Parameter, torch.Tensor]:
    """Trained weight of two dimensions or more -> 1 where it may move, 0 where it is zero.

    Raises:
        ConfigError: nothing is zero.
    """
    weights = [weight for weight in network.parameters() if weight.ndim > 1 and weight.requires_grad]
    masks = {weight: (weight.detach() != 0).to(weight.dtype) for weight in weights}
    num_free = sum(float(whole(mask.sum())) for mask in masks.values())
    if num_free == sum(weight.numel() for weight in weights):
        raise ConfigError("train.init.keep_zeros", "the starting weights have no zeros to keep; leave it out")
    return masks


def whole(value: torch.Tensor) -> torch.Tensor:
    """A tensor of which each rank may hold a part, put together; every rank has to ask."""
    gather = getattr(value, "full_tensor", None)
    return gather() if gather else value


def dense(gradient: torch.Tensor) -> torch.Tensor:
    """What of a gradient is not zero for sure, each number once: the rows of a table that a batch names."""
    return gradient.coalesce().values() if gradient.is_sparse else gradient


def learning_rate(config: TrainConfig, step: int, total_steps: int, plateau_fraction: float) -> float:
    """Learning rate of the step numbered ``step`` (from 0)."""
    return config.optimizer.learning_rate * rate_fraction(config.schedule, step, total_steps) * plateau_fraction
