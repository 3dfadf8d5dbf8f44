"""The course of a training: steps, validations, checkpoints, the way back, the end. Tensors in, events out.

What makes a run repeatable, and a resumed one equal to an unbroken one: the order of rows follows from the seed and a
global sample offset (`order.py`), and a checkpoint holds everything else that a step depends on: weights, optimizer
state, each rank's random generators, and the sums under way.
"""

from __future__ import annotations

import copy
import math
import os
import random
import time
from collections.abc import Callable
from datetime import timedelta
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import distributed, nn

from modelyard.errors import NonFiniteLoss, Preempted
from modelyard.train import stop
from modelyard.train.agreement import Agreement
from modelyard.train.checkpoints import Checkpoints, sha256_of
from modelyard.train.config import TrainConfig
from modelyard.train.contrast import pair_loss
from modelyard.train.costs import Costs, CpuWatch, memory_bytes
from modelyard.train.devices import facts_of, own_facts
from modelyard.train.distillation import Teacher
from modelyard.train.events import EventKind, RankEvent, rank_figure
from modelyard.train.losses import LOSSES
from modelyard.train.order import RowOrder, mixed_seed
from modelyard.train.progress import Progress, score
from modelyard.train.resume import resume_newest
from modelyard.train.rows import Rows, TokenRows
from modelyard.train.saver import Saver, Snapshot
from modelyard.train.snapshots import Origin, Tensors, all_finite, local_tensors, shapes, shared_tensors, staged
from modelyard.train.stepper import Step, Watch, learning_rate
from modelyard.train.strategies import describe, stepper_for
from modelyard.train.validation import Objective, validate

# Longer than any step, shorter than the silence after which the launching process gives up.
MEETING_TIMEOUT = timedelta(seconds=60)
REPORT_SECONDS = 1.0
ALIVE_SECONDS = 2.0
AHEAD_STEPS = 8


class Trainer:
    """One rank's share of a training run."""

    def __init__(
        self,
        config: TrainConfig,
        network: nn.Module,
        device: torch.device,
        *,
        train: Rows,
        validation: Rows,
        objective: Objective,
        checkpoints: Checkpoints,
        emit: Callable[[RankEvent], None],
        teacher: Teacher | None = None,
    ) -> None:
        self.config = config
        self.train, self.validation = train, validation
        self.progress = Progress(world_size=distributed.get_world_size())
        self.costs: Costs | None = None  # measured where it is worth a tenth of a second
        # One rank of each node: after another has come or gone, rank 0 may be on any.
        self.tells = int(os.environ.get("LOCAL_RANK", str(distributed.get_rank()))) == 0
        self.terminate = False  # set by a signal handler; the group saves and ends at its next meeting
        self._objective = objective
        self._checkpoints = checkpoints
        self._emit = emit
        self._began = self._spoke_at = self._reported_at = self._saved_at = time.monotonic()
        example = train.batch(torch.arange(min(2, len(train)))).features
        loss = LOSSES[objective.loss] if objective.loss in LOSSES else pair_loss(objective.loss, config)
        make = stepper_for(config)
        self.stepper = make(config, network, device, loss, example=example, note=self._warn, teacher=teacher)
        # Where ranks do not wait for each other, a meeting makes them: not after every few steps.
        at_least = AHEAD_STEPS * self.stepper.world_size if self.stepper.runs_ahead else 1
        self.agreement = Agreement(MEETING_TIMEOUT, at_least)
        self.progress.shapes = shapes(self.stepper.network)
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self._order = RowOrder(len(train), self._batch_size, config.seed, config.shuffle_window)
        fence = self.agreement.shared(checkpoints.new_fence() if self.stepper.rank == 0 else None)
        self._saver = Saver(checkpoints, fence, config.checkpoint.timeout_seconds, self._say_saved, self._warn)
        self._origin: Origin | None = None
        self._staged: Tensors = {}  # the last save's copies, which the next one writes over
        self._stall, self._cpu = Watch(), CpuWatch()
        self._rate = config.optimizer.learning_rate
        self._reported = (0, 0.0)  # the group's rows and this rank's loss when figures were last reported
        self._own_rows = 0  # this rank's rows since

    def fit(self) -> Progress:
        """Train until a stop rule holds, going on from the newest checkpoint.

        Raises:
            NonFiniteLoss: the loss was lost twice, the second time after going back to the last good checkpoint.
            TargetNotReached: a limit came before the target.
            Preempted: a rank was asked to end; everything is saved.
            CheckpointFailed: a checkpoint could not be saved in time.
        """
        self._begin()
        is_first = True
        while not self.progress.stopped_by:
            self._train_steps()
            if is_first:
                self._say("progress", {})  # that it trains is told at once, figures come later
                is_first = False
            if self._must_meet():
                self._meet()
        self._saver.wait(self._alive)
        stop.require_target(self.config, self._objective.metric, self.progress)
        return self.progress

    # -- the course -----------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Fresh random streams, then whatever the newest good checkpoint holds."""
        seed_generators(self.config.seed, self.stepper.streams)
        if not resume_newest(self, self._checkpoints, self._warn):
            self.stepper.draw_(self._alive)
            self._origin = Origin.of(self.stepper, self.loss_sum)
        self._began = time.monotonic() - self.progress.seconds
        self._remember_reported()
        values = {
            "world_size": self.stepper.world_size,
            "resumed_steps": self.progress.step,
            "resumed_epochs": self._epoch,
        }
        words = f"{self.stepper.world_size} ranks on {self.stepper.device.type}, {describe(self.config)}"
        about = facts_of(self.agreement.all_of(own_facts(self.stepper.device)))
        self._say("started", {name: float(value) for name, value in values.items()}, words, about)

    def _train_steps(self) -> None:
        """The next step, or all of them until ranks meet where they do not step together."""
        if not self.stepper.parallel.training:  # walking through all modules costs a small network 5 % of its step
            self.stepper.parallel.train()
        steps = [self._next_step()]
        while self.stepper.runs_ahead and not self._must_meet():
            steps.append(self._next_step())
        tally = self.stepper.advance(self.train, steps)
        self.loss_sum += tally.loss
        self._own_rows += tally.rows

    def _next_step(self) -> Step:
        """The step that follows in the stream of rows, counted as made."""
        progress = self.progress
        rows = self._numbered(self._order.batch_at(progress.samples))
        self._rate = learning_rate(self.config, progress.step, self._total_steps, progress.plateau.fraction)
        step = Step(rows, progress.step, self._rate)
        progress.step += 1
        progress.samples += len(rows)
        progress.rows_counted += len(rows)
        if self.config.stop.max_tokens and isinstance(self.train, TokenRows):
            progress.tokens += self.train.num_tokens(rows)
        return step

    def _numbered(self, rows: torch.Tensor) -> torch.Tensor:
        """Numbers of rows, with the epoch in them where rows are not the same in each."""
        return rows + self._epoch * len(self.train) if getattr(self.train, "varies_by_epoch", False) else rows

    def _must_meet(self) -> bool:
        """Always before a validation or a checkpoint: what is kept has a finite loss behind it."""
        careful = self.progress.step <= self.progress.rewound_at
        return (
            self._epoch_ended
            or careful
            or self.agreement.is_due(self.progress.step)
            or self._save_is_due_by_count
            or bool(self._stop_reason())
        )

    def _meet(self) -> None:
        """Agree with the other ranks on what is due after this step, and do it."""
        self._saver.check()
        every, now = self.config.checkpoint, time.monotonic()
        decision = self.agreement.meet(
            self.progress.step,
            lost=self._loss_is_lost(),
            terminated=self.terminate,
            save=every.every_seconds is not None and now - self._saved_at >= every.every_seconds,
            report=now - self._reported_at >= REPORT_SECONDS,
            seconds=now - self._began,
        )
        self.progress.seconds = decision.seconds
        if decision.lost:
            self._go_back()
            return
        if decision.report:
            self._report()
        is_best = False
        if self._epoch_ended or self._stop_reason():
            metrics = self._close_interval()
            if not all(map(math.isfinite, metrics.values())):
                self._go_back()
                return
            is_best = self._remember(metrics)
        ending = bool(self.progress.stopped_by) or decision.terminated
        if decision.save or self._save_is_due_by_count or is_best or ending:
            self._save()
        if decision.terminated and not self.progress.stopped_by:
            self._leave()

    def _close_interval(self) -> dict[str, float]:
        """Metrics on the validation split, with the mean training loss per row since the last time."""
        total = self.loss_sum.clone()
        distributed.all_reduce(total)
        found = validate(self.stepper, self.validation, self._objective, self._validation_rows)
        metrics = {**found, "train_loss": float(total) / self.progress.rows_counted}
        return {**metrics, "step": float(self.progress.step), "epoch": self.progress.samples / len(self.train)}

    def _remember(self, metrics: dict[str, float]) -> bool:
        """Take a validation in; whether it is the best so far."""
        progress = self.progress
        self.loss_sum.zero_()
        progress.rows_counted = 0
        self._remember_reported()
        is_best = progress.remember(metrics, self._objective.metric)
        progress.plateau.observe(self.config.schedule, metrics["loss"])
        progress.stopped_by = self._stop_reason()
        self._say("validation", metrics)
        return is_best

    # -- checkpoints ----------------------------------------------------------------------------------

    def _save(self) -> None:
        """Copy the state and have it saved beside training; waits only for a save that is still under way."""
        with self._stall:
            self._saver.wait(self._alive)
            self.stepper.align_()
            tensors = staged(self.stepper.shared(shared_tensors(self.stepper)), self._staged)
            own = staged(self.stepper.own_tensors(), self._staged)
            self._staged = tensors | own
            if not all(self.agreement.all_of(all_finite(self._staged.values()))):
                self._go_back()
                return
            self.progress.loss_scale = self.stepper.precision.state()
            last = self.progress.validations[-1] if self.progress.validations else None
            scored = last is not None and last["step"] == self.progress.step
            snapshot = Snapshot(
                progress=copy.deepcopy(self.progress),
                score=score(last, self._objective.metric) if last and scored else None,
                tensors=tensors,
                local=local_tensors(self.stepper.device, self.loss_sum) | own,
            )
            self._saver.start(snapshot)
        self._saved_at, self._origin = time.monotonic(), None

    def _go_back(self) -> None:
        """Return to the last good checkpoint, once; from there every step is looked at.

        Raises:
            NonFiniteLoss: this is the second time.
        """
        if self.progress.rewound_at >= 0:
            raise NonFiniteLoss(self._loss_sentence())
        lost_at = self.progress.step
        self._saver.wait(self._alive)
        if not resume_newest(self, self._checkpoints, self._warn):
            assert self._origin is not None, "before the first checkpoint the beginning is kept"
            self._origin.restore_(self.stepper, self.loss_sum)
            self.progress = Progress(world_size=self.stepper.world_size, shapes=self.progress.shapes)
        self.progress.rewound_at = lost_at
        self._remember_reported()
        self._warn(f"the loss was lost by step {lost_at}; going back to step {self.progress.step}, once")

    def _leave(self) -> None:
        self._saver.wait(self._alive)
        raise Preempted(f"asked to end (SIGTERM); the state after step {self.progress.step} is saved")

    # -- questions ------------------------------------------------------------------------------------

    @property
    def _batch_size(self) -> int:
        return len(self.train) if self.config.optimizer.name == "gd" else self.config.batch_size

    @property
    def _validation_rows(self) -> int:
        return max(self.config.batch_size // self.stepper.judged.count, self._objective.validation_rows)

    @property
    def _epoch(self) -> int:
        return self.progress.samples // len(self.train)

    @property
    def _epoch_ended(self) -> bool:
        return self.progress.samples % len(self.train) == 0

    @property
    def _total_steps(self) -> int:
        if self.config.schedule.total_steps:
            return self.config.schedule.total_steps
        epochs = self.config.max_epochs * self._order.steps_per_epoch
        return min(epochs, self.config.stop.max_steps or epochs, self._steps_of_tokens or epochs)

    @cached_property
    def _steps_of_tokens(self) -> int:
        """Steps that read ``stop.max_tokens``, as near as the mean row tells; 0 without that rule."""
        wanted = self.config.stop.max_tokens
        if not wanted or not isinstance(self.train, TokenRows):
            return 0
        per_epoch = self.train.num_tokens(torch.arange(len(self.train)))
        return -(-wanted * self._order.steps_per_epoch // per_epoch)

    @property
    def _save_is_due_by_count(self) -> bool:
        every = self.config.checkpoint.every_steps
        by_steps = every is not None and self.progress.step % every == 0
        return by_steps or (self._epoch_ended and self._epoch % self.config.checkpoint_every_epochs == 0)

    def _stop_reason(self) -> str:
        return stop.reason(self.config, self._objective.metric, self.progress, len(self.train))

    def _loss_is_lost(self) -> bool:
        total, bound = float(self.loss_sum), self.config.stop.diverged_above
        mean = (total - self._reported[1]) / max(self._own_rows, 1)
        return not math.isfinite(total) or (bound is not None and mean > bound)

    def _loss_sentence(self) -> str:
        batch = self.train.batch(self._order.last_batch)
        digest = sha256_of(batch.features.numpy().tobytes(), batch.targets.numpy().tobytes())
        bound = self.config.stop.diverged_above
        what = "became NaN or infinite" if bound is None else f"became NaN, infinite or larger than {bound:g}"
        return (
            f"the training loss {what} at step {self.progress.step}, epoch {self._epoch + 1} (batch {digest}, gradient norm"
            f" {self.stepper.gradient_norm():.4g}), also after going back to the last good checkpoint; lower"
            f" train.optimizer.learning_rate (now {self.config.optimizer.learning_rate:g}), set train.clip_norm,"
            " or check the data"
        )

    # -- telling --------------------------------------------------------------------------------------

    def _report(self) -> None:
        """Figures of the steps since the last report; for some strategies the gradient norm is a collective."""
        now = time.monotonic()
        rows, loss = self.progress.rows_counted - self._reported[0], float(self.loss_sum) - self._reported[1]
        seconds = now - self._reported_at
        own = {
            "memory_bytes": memory_bytes(self.stepper.device),
            "data_wait_fraction": self.stepper.data_wait.take() / seconds,
        }
        values = {
            "gradient_norm": self.stepper.gradient_norm(),
            "learning_rate": self._rate,
            "checkpoint_stall_seconds": self._stall.take(),
            **own,
            **self.stepper.figures(),
            **self._of_each_rank({**own, "cpu_fraction": self._cpu.fraction()}),
        }
        if self._own_rows:
            values |= {"loss": loss / self._own_rows, "rows_per_second": rows / seconds}
            values |= self.costs.figures(rows / seconds, self.stepper.world_size) if self.costs else {}
        self._reported_at = now
        self._remember_reported()
        self._say("progress", {name: value for name, value in values.items() if math.isfinite(value)})

    def _of_each_rank(self, own: dict[str, float]) -> dict[str, float]:
        """Figures of every rank, under its number. A collective."""
        table = self.agreement.table(list(own.values()))
        return {
            rank_figure(rank, name): value
            for rank, row in enumerate(table)
            for name, value in zip(own, row, strict=True)
        }

    def _remember_reported(self) -> None:
        self._reported, self._own_rows = (self.progress.rows_counted, float(self.loss_sum)), 0

    def _warn(self, text: str) -> None:
        self._say("warning", {}, text)

    def _alive(self) -> None:
        if time.monotonic() - self._spoke_at > ALIVE_SECONDS:
            self._say("progress", {})

    def _say_saved(self, progress: Progress, uri: str) -> None:
        if self.tells:
            epoch = progress.samples // len(self.train)
            self._emit(RankEvent(kind="checkpoint", step=progress.step, epoch=epoch, message=uri))

    def _say(
        self, kind: EventKind, values: dict[str, float], message: str = "", about: dict[str, str] | None = None
    ) -> None:
        self._spoke_at = time.monotonic()
        if self.tells:
            made = RankEvent(kind=kind, step=self.progress.step, epoch=self._epoch, values=values, message=message)
            self._emit(made.model_copy(update={"about": about}) if about else made)


def seed_generators(seed: int, rank: int) -> None:
    """Independent random streams for each rank: torch's, NumPy's and Python's, whichever a network draws from."""
    mixed: Any = mixed_seed(seed, rank, 1)
    torch.manual_seed(mixed)
    np.random.seed(mixed % 2**32)  # noqa: NPY002 - users' code may draw from the global one
    random.seed(mixed)
