"""One optimizer step on a global batch: tensors in, summed loss out.

The loss is scaled so that a step's gradient is the mean over the global batch, however unevenly its rows fall on the
ranks and on the passes of accumulation.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import distributed, nn

from modelyard.errors import ConfigError
from modelyard.train.averaging import WeightAverage
from modelyard.train.config import TrainConfig
from modelyard.train.distillation import Teacher
from modelyard.train.losses import Loss
from modelyard.train.optimizers import build_optimizers
from modelyard.train.parallelize import gradient_sync, parallelize
from modelyard.train.precision import Precision
from modelyard.train.rows import Rows
from modelyard.train.schedules import rate_fraction


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


class Stepper:
    """A network on one rank, with everything that moves its weights."""

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
        self.network = network.to(device)
        self.precision = Precision(config.precision, device, cast_by_strategy=config.strategy == "fsdp")

        def trial() -> None:
            self.outputs(example).sum().backward()

        self.parallel = parallelize(self.network, config, device, trial, note)
        self.optimizers = build_optimizers(config.optimizer, self.network, device)
        self.average = WeightAverage(self.network, config.ema_decay) if config.ema_decay else None
        self.data_wait = Watch()
        self._loss, self._teacher = loss, teacher
        self._masks = zero_masks(self.network) if config.init.keep_zeros else {}

    @property
    def _groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def forget_state(self) -> None:
        """Optimizers, average and loss scale as before the first step, around the weights as they are."""
        config = self.config
        self.optimizers = build_optimizers(config.optimizer, self.network, self.device)
        self.average = WeightAverage(self.network, config.ema_decay) if config.ema_decay else None
        self.precision = Precision(config.precision, self.device, cast_by_strategy=config.strategy == "fsdp")

    def step(self, split: Rows, rows: torch.Tensor, number: int, rate: float) -> torch.Tensor:
        """One step on the global batch ``rows``.

        Args:
            number: of this step, from 0.
            rate: learning rate of this step.

        Returns:
            The loss summed over this rank's rows.
        """
        for group in self._groups:
            group["lr"] = rate
        self._zero_grad()
        total = self._accumulate(split, rows)
        self.precision.unscale_(self.optimizers)
        self._keep_zeros_(gradients=True)
        if self.config.clip_norm:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip_norm)
        self.precision.step(self.optimizers)
        self._keep_zeros_(gradients=False)  # muon's update of a matrix does not keep those of its gradient
        if self.average:
            self.average.update(number)
        return total

    def outputs(self, features: torch.Tensor) -> torch.Tensor:
        """What the network makes of rows, in fp32."""
        with self.precision.autocast():
            # Without DDP around it: that would synchronise buffers, and ranks may have unequal numbers of batches.
            return self.network(features.to(self.device)).float()

    @torch.no_grad()
    def align_buffers_(self) -> None:
        """Rank 0's buffers (running statistics, say) on every rank, as ddp has them at its next step anyway."""
        if self.config.strategy == "ddp" and self.world_size > 1:
            for buffer in self.network.buffers():
                distributed.broadcast(buffer, src=0)

    def gradient_norm(self) -> float:
        """Norm of the gradient that the last step used, before it was clipped. Under fsdp every rank must ask."""
        gradients = [parameter.grad for parameter in self.network.parameters() if parameter.grad is not None]
        return float(whole(nn.utils.get_total_norm(gradients)))

    def _accumulate(self, split: Rows, rows: torch.Tensor) -> torch.Tensor:
        """Gradients of the mean loss over ``rows``, in as many passes as the config says."""
        passes = rows[self.rank :: self.world_size].tensor_split(self._num_passes(len(rows)))
        scale = self.world_size / len(rows)  # ranks are averaged over: this makes it the mean over the batch
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for number, share in enumerate(passes, 1):
            with self.data_wait:
                batch = split.batch(share)
                features, targets = batch.features.to(self.device), batch.targets.to(self.device)
            with gradient_sync(self.parallel, wanted=number == len(passes)):
                with self.precision.autocast():
                    outputs = self.parallel(features)
                summed = self._loss(outputs.float(), targets)
                if self._teacher:
                    seen = features if batch.teacher_features is None else batch.teacher_features.to(self.device)
                    summed = self._teacher.mixed(summed, outputs.float(), seen)
                self.precision.backward(summed, scale)
            total += summed.detach().double()
        return total

    @torch.no_grad()
    def _keep_zeros_(self, *, gradients: bool) -> None:
        for parameter, mask in self._masks.items():
            values = parameter.grad if gradients else parameter
            if values is not None:
                values.mul_(mask)

    def _num_passes(self, num_rows: int) -> int:
        if self.config.optimizer.name == "gd":
            return -(-num_rows // self.config.batch_size)
        return self.config.accumulate

    def _zero_grad(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)


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


def learning_rate(config: TrainConfig, step: int, total_steps: int, plateau_fraction: float) -> float:
    """Learning rate of the step numbered ``step`` (from 0)."""
    return config.optimizer.learning_rate * rate_fraction(config.schedule, step, total_steps) * plateau_fraction
