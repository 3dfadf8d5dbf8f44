"""What all ranks must decide alike, in one small collective.

A rank that saw SIGTERM, a NaN or the clock must not act alone: the others would wait for it in a collective. So ranks
meet every few steps, as many as rank 0 makes in a quarter of a second, and act on the same answers.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

MEETING_SECONDS = 0.25
MAX_STEPS_BETWEEN = 1000


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What the group does next; true where any rank said so."""

    lost: bool  # the loss left the finite numbers
    terminated: bool  # a rank was asked to end
    save: bool
    report: bool
    seconds: float  # on rank 0's clock


class Agreement:
    """The meetings of one group. Its process group is gloo on every device: the values are plain numbers.

    Args:
        at_least: steps between two meetings, however long they take.
    """

    def __init__(self, timeout: timedelta, at_least: int = 1) -> None:
        self._at_least = at_least
        self._group = distributed.new_group(backend="gloo", timeout=timeout)
        self._next_step = 0
        self._met_at = time.monotonic()
        self._met_step = 0

    def is_due(self, step: int) -> bool:
        return step >= self._next_step

    def meet(self, step: int, *, lost: bool, terminated: bool, save: bool, report: bool, seconds: float) -> Decision:
        """Every rank calls this after the same step; rank 0's clock says when the next meeting is."""
        leads = distributed.get_rank() == 0
        votes = [lost, terminated, leads and save, leads and report, leads * seconds, leads * self._pace(step)]
        values = torch.tensor([float(vote) for vote in votes], dtype=torch.float64)
        distributed.all_reduce(values, distributed.ReduceOp.MAX, group=self._group)
        self._next_step = step + int(values[5])
        self._met_at, self._met_step = time.monotonic(), step
        lost, terminated, save, report = (bool(value) for value in values[:4])
        return Decision(lost=lost, terminated=terminated, save=save, report=report, seconds=float(values[4]))

    def shared(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        values = [value]
        distributed.broadcast_object_list(values, src=0, group=self._group)
        return values[0]

    def table(self, row: Sequence[float]) -> list[list[float]]:
        """Every rank's row of numbers, on every rank."""
        own = torch.tensor(row, dtype=torch.float64)
        rows = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
        distributed.all_gather(rows, own, group=self._group)
        return [row.tolist() for row in rows]

    def all_of(self, value: Any) -> list[Any]:
        """Every rank's value, on every rank."""
        values: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(values, value, group=self._group)
        return values

    def _pace(self, step: int) -> int:
        seconds = time.monotonic() - self._met_at
        steps = max(step - self._met_step, 1)
        return min(max(int(steps * MEETING_SECONDS / max(seconds, 1e-6)), self._at_least), MAX_STEPS_BETWEEN, 2 * steps)
