"""Epochs and steps of data-parallel training: tensors in, events and checkpoints out.

What makes a run repeatable, and a resumed one equal to an unbroken one: the row order of an epoch is drawn from
(seed, epoch) alike on every rank, dropout from (seed, epoch, rank), and checkpoints lie on epoch boundaries, so no
generator state needs saving. The loss is scaled so that a step's gradient is the mean over the global batch however
unevenly its rows fall on the ranks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from modelyard.errors import NonFiniteLoss, TargetNotReached
from modelyard.metrics import Metric
from modelyard.train.checkpoints import Checkpoints
from modelyard.train.config import OptimizerConfig, TrainConfig
from modelyard.train.events import RankEvent

LOSSES: dict[str, Callable[..., torch.Tensor]] = {"cross_entropy": nn.functional.cross_entropy}
FINITE_CHECK_STEPS = 50  # reading the loss synchronises with the device
PROGRESS_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True)
class Split:
    """One split in memory: features (n, width) float32, targets (n,)."""

    features: torch.Tensor
    targets: torch.Tensor

    @classmethod
    def of(cls, features: np.ndarray, targets: np.ndarray) -> Split:
        return cls(features=torch.from_numpy(features), targets=torch.from_numpy(targets))


@dataclass
class History:
    """What training has seen so far; part of every checkpoint."""

    epochs: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    best_value: float = -math.inf
    best_loss: float = math.inf
    best_weights: dict[str, torch.Tensor] = field(default_factory=dict)


class Trainer:
    """One rank's share of a training run."""

    def __init__(
        self,
        config: TrainConfig,
        network: nn.Module,
        device: torch.device,
        *,
        loss: str,
        headline: str,
        new_metric: Callable[[], Metric],
        checkpoints: Checkpoints,
        emit: Callable[[RankEvent], None],
    ) -> None:
        self.config = config
        self.rank = distributed.get_rank()
        self.world_size = distributed.get_world_size()
        self.device = device
        self.network = network.to(device)
        self.parallel = DistributedDataParallel(self.network)
        self.optimizer = build_optimizer(config.optimizer, self.network)
        self.history = History()
        self._loss = LOSSES[loss]
        self._headline = headline
        self._new_metric = new_metric
        self._checkpoints = checkpoints
        self._emit = emit
        self._step = 0
        self._spoke_at = 0.0

    def fit(self, train: Split, validation: Split) -> dict[str, float]:
        """Train until the target or the epoch limit, going on from the newest checkpoint.

        Returns:
            The metrics of the kept epoch.

        Raises:
            NonFiniteLoss: the loss became NaN or infinite.
            TargetNotReached: the epoch limit came first.
        """
        self._resume()
        while len(self.history.epochs) < self.config.max_epochs and not self._target_reached():
            epoch = len(self.history.epochs)
            started = time.monotonic()
            train_loss = self._train_epoch(train, epoch)
            metrics = self._validate(validation)
            seconds = time.monotonic() - started
            self._remember(epoch + 1, {**metrics, "train_loss": train_loss})
            rate = len(train.targets) / seconds
            self._say("epoch", epoch + 1, {**metrics, "train_loss": train_loss, "rows_per_second": rate})
            self._save_checkpoint(epoch + 1)
        if self.config.target is not None and not self._target_reached():
            raise TargetNotReached(
                f"{self._headline} reached {self.history.best_value:.4f} (epoch {self.history.best_epoch}) within"
                f" train.max_epochs={self.config.max_epochs}; train.target is {self.config.target:.4f}"
            )
        return self.history.epochs[self.history.best_epoch - 1]

    # -- one epoch ------------------------------------------------------------------------------------

    def _train_epoch(self, split: Split, epoch: int) -> float:
        """One pass over the training rows; returns the mean loss per row."""
        self.parallel.train()
        torch.manual_seed(_seed(self.config.seed, epoch, self.rank))
        order = epoch_order(len(split.targets), self.config.seed, epoch)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for start in range(0, len(order), self.config.batch_size):
            total += self._train_step(split, order[start : start + self.config.batch_size])
            self._step += 1
            if self._step % FINITE_CHECK_STEPS == 0:
                self._require_finite(float(total), epoch)
            self._say_progress(epoch)
        distributed.all_reduce(total)
        self._require_finite(float(total), epoch)
        return float(total) / len(order)

    def _train_step(self, split: Split, batch: torch.Tensor) -> torch.Tensor:
        """One optimizer step on this rank's share of a global batch; returns the share's summed loss."""
        share = batch[self.rank :: self.world_size]
        features = split.features[share].to(self.device)
        targets = split.targets[share].to(self.device)
        summed = self._loss(self.parallel(features), targets, reduction="sum")
        self.optimizer.zero_grad(set_to_none=True)
        # DDP averages over ranks: this factor turns the mean of sums into the mean over the global batch.
        (summed * (self.world_size / len(batch))).backward()
        self.optimizer.step()
        return summed.detach().double()

    @torch.no_grad()
    def _validate(self, split: Split) -> dict[str, float]:
        """Metrics over the whole split, each rank scoring its share."""
        self.parallel.eval()
        metric = self._new_metric()
        mine = torch.arange(self.rank, len(split.targets), self.world_size)
        for share in mine.split(max(self.config.batch_size, 1024)):
            # The bare network: DDP would synchronise buffers, and ranks may have unequal numbers of batches.
            outputs = self.network(split.features[share].to(self.device))
            metric.update(outputs.float().cpu().numpy(), split.targets[share].numpy())
        state = torch.from_numpy(metric.state).to(self.device)
        distributed.all_reduce(state)
        metric.state = state.cpu().numpy()
        return metric.compute()

    # -- state ----------------------------------------------------------------------------------------

    def _resume(self) -> None:
        pointer = [self._checkpoints.latest() if self.rank == 0 else None]
        # Rank 0 looks, all follow: two ranks must never go on from different epochs.
        distributed.broadcast_object_list(pointer, src=0)
        if pointer[0] is not None:
            state = self._checkpoints.load(pointer[0])
            self.network.load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.history = History(**state["history"])
            self._step = state["step"]
        values = {"world_size": float(self.world_size), "resumed_epochs": float(len(self.history.epochs))}
        self._say("started", len(self.history.epochs), values, f"{self.world_size} ranks on {self.device.type}")

    def _save_checkpoint(self, epoch: int) -> None:
        last = epoch == self.config.max_epochs or self._target_reached()
        if self.rank == 0 and (last or epoch % self.config.checkpoint_every_epochs == 0):
            uri = self._checkpoints.save(epoch, self._state())
            self._say("checkpoint", epoch, {}, uri)
        # Nobody runs ahead of the state that a restart would come back to.
        distributed.barrier()

    def _state(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": vars(self.history),
            "step": self._step,
        }

    def _remember(self, epoch: int, metrics: dict[str, float]) -> None:
        self.history.epochs.append(metrics)
        # On a small validation split many epochs tie: of those the one with the lowest loss is kept.
        if (metrics[self._headline], -metrics["loss"]) > (self.history.best_value, -self.history.best_loss):
            self.history.best_value, self.history.best_loss = metrics[self._headline], metrics["loss"]
            self.history.best_epoch = epoch
            weights = self.network.state_dict()
            self.history.best_weights = {name: tensor.cpu().clone() for name, tensor in weights.items()}

    def _target_reached(self) -> bool:
        return self.config.target is not None and self.history.best_value >= self.config.target

    def _require_finite(self, total: float, epoch: int) -> None:
        if not math.isfinite(total):
            raise NonFiniteLoss(
                f"the training loss became {total} in epoch {epoch + 1}, step {self._step}; lower"
                f" train.optimizer.learning_rate (now {self.config.optimizer.learning_rate}) or check the data"
            )

    # -- telling --------------------------------------------------------------------------------------

    def _say(self, kind: Any, epoch: int, values: dict[str, float], message: str = "") -> None:
        if self.rank == 0:
            self._spoke_at = time.monotonic()
            self._emit(RankEvent(kind=kind, step=self._step, epoch=epoch, values=values, message=message))

    def _say_progress(self, epoch: int) -> None:
        if time.monotonic() - self._spoke_at > PROGRESS_SECONDS:
            self._say("progress", epoch, {})


def build_optimizer(config: OptimizerConfig, network: nn.Module) -> torch.optim.Optimizer:
    """torch's optimizer of that name over all parameters."""
    parameters, rate, decay = network.parameters(), config.learning_rate, config.weight_decay
    if config.name == "sgd":
        return torch.optim.SGD(parameters, lr=rate, weight_decay=decay, momentum=config.momentum)
    if config.name == "adam":
        return torch.optim.Adam(parameters, lr=rate, weight_decay=decay)
    return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)


def epoch_order(rows: int, seed: int, epoch: int) -> torch.Tensor:
    """The order of the training rows in an epoch: (rows,) int64, alike on every rank."""
    generator = torch.Generator().manual_seed(_seed(seed, epoch, rank=-1))
    return torch.randperm(rows, generator=generator)


def _seed(seed: int, epoch: int, rank: int) -> int:
    """Independent streams for neighbouring seeds, epochs and ranks (NumPy's SeedSequence mixes them)."""
    return int(np.random.SeedSequence([seed, epoch, rank + 1]).generate_state(1, np.uint64)[0] >> 1)
