"""While nobody asks, the endpoint asks itself: held-out rows of the versions' verdicts, drawn at the canary's weight.

Rows that repeat prove that a version is stable and quick, not that it is right: they are counted apart, and a record of
evidence says how many they were.
"""

from __future__ import annotations

import asyncio
from time import perf_counter

import numpy as np

from modelyard.serve.router import Router
from modelyard.serve.running import RunningVersion
from modelyard.serve.shadow import are_finite
from modelyard.serve.trial import Trial
from modelyard.serve.wire import Tensor
from modelyard.serve.workers import WorkerLost

CONCURRENT = 16
PAUSE_SECONDS = 0.02  # after a failure: a dead worker fails at once


class Replay:
    """Asks both versions of one trial until it is told to stop; `seconds` is how long it has asked.

    Args:
        most: requests that the canary may get.
    """

    def __init__(self, trial: Trial, router: Router, most: int) -> None:
        self.trial = trial
        self.num_asked = 0
        self._left = most
        self._router = router
        self._loop = asyncio.get_running_loop()
        self._stopped = False
        self._began = perf_counter()
        for _ in range(CONCURRENT):
            self.ask()

    @property
    def seconds(self) -> float:
        return perf_counter() - self._began

    def stop(self) -> None:
        self._stopped = True

    def ask(self) -> None:
        """One row more, of the version that is drawn."""
        trial, model = self.trial, self.trial.model
        if self._stopped or trial.is_over or self._router.trials.get(model) is not trial:
            return
        version = self._router.pick(model)
        if version is trial.canary:
            if not self._left:
                self._stopped = True
                return
            self._left -= 1
        rows = version.golden_rows
        place = self.num_asked % len(rows)
        self.num_asked += 1
        row = rows[place : place + 1]
        asked = _Asked(self, version, row, trial.enter(version))
        try:
            version.submit(asked, row)
        except Exception as failure:  # noqa: BLE001 (a dead worker, a full queue: both count)
            asked.failed(failure)

    def ask_later(self) -> None:
        self._loop.call_later(PAUSE_SECONDS, self.ask)


class _Asked:
    """Who waits for one answer."""

    is_over = False

    def __init__(self, replay: Replay, version: RunningVersion, row: np.ndarray, pair: int | None) -> None:
        self._replay = replay
        self._row = row
        self._pair = pair
        self._version = version
        self._started = perf_counter()

    def answered(self, answers: dict[str, Tensor], begin: int, end: int) -> None:
        own = {name: tensor[begin:end] for name, tensor in answers.items()}
        seconds = self._count(failed=False, odd=not are_finite(own))
        if copier := self._replay.trial.copier:
            copier.offer(self._row, own, seconds, replayed=True)
        self._replay.ask()

    def failed(self, failure: Exception) -> None:
        # A dead worker's real requests are answered by another; that it died counts for itself.
        if not isinstance(failure, WorkerLost):
            self._count(failed=True, odd=False)
        self._replay.ask_later()

    def _count(self, *, failed: bool, odd: bool) -> float:
        """Returns the seconds that it took."""
        seconds = perf_counter() - self._started
        trial = self._replay.trial
        trial.count(self._version, failed=failed, odd=odd, seconds=seconds, pair=self._pair, replayed=True)
        return seconds
