"""Copies of live requests, asked of a canary whose answers nobody gets, and held against the stable version's.

Off the path of the request: a copy is made when its answer has been written. Bounded, and dropped first: while the
stable version has much to do, or the canary owes much, nothing is copied.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from modelyard.errors import EndpointUnavailable
from modelyard.gates import Shadow
from modelyard.serve.batching import Overloaded
from modelyard.serve.wire import RAW_OUTPUTS, Tensor
from modelyard.serve.workers import WorkerLost

if TYPE_CHECKING:
    from modelyard.serve.running import RunningVersion
    from modelyard.serve.trial import Trial

Answers = Mapping[str, Tensor]

MAX_COPIES = 32  # that the canary owes at once
MAX_ROWS = 64  # of one request: a longer one would make a batch of its own
BUSY_REQUESTS = 8  # of the stable version without an answer: then its own are served first


class Copier:
    """Copies requests of one trial while its canary is in the shadow.

    Attributes:
        num_dropped: requests that were drawn to be copied, and were not for want of time.
    """

    def __init__(self, trial: Trial, settings: Shadow, chance: random.Random | None = None) -> None:
        self.num_dropped = 0
        self.num_unanswered = 0
        self.tolerance = settings.tolerance
        self._trial = trial
        self._share = settings.share
        self._chance = chance or random.Random()

    def offer(
        self,
        rows: np.ndarray,
        answers: Answers,
        seconds: float,
        *,
        rows_for: Callable[[RunningVersion], np.ndarray] | None = None,
        replayed: bool = False,
    ) -> None:
        """The stable version has answered these rows in so many seconds, and its client has the answer.

        Args:
            rows_for: reads the request anew for a version with another tokenizer or other categories; without it such a
                canary gets no copy, as the stable version's codes mean something else to it.
            replayed: the endpoint itself asked, because nobody else does: copied in any case that the bounds allow.
        """
        trial = self._trial
        if trial.is_over or not (replayed or self._chance.random() < self._share):
            return
        reads_alike = trial.reads_alike
        if not reads_alike and rows_for is None:
            return
        is_busy = trial.stable.num_in_flight > BUSY_REQUESTS and not replayed
        if is_busy or self.num_unanswered >= MAX_COPIES or len(rows) > MAX_ROWS:
            self.num_dropped += not replayed
            return
        self.num_unanswered += 1
        copy = _Copy(self, trial, answers, seconds, replayed=replayed)
        try:
            trial.canary.submit(copy, rows if reads_alike or rows_for is None else rows_for(trial.canary))
        except Exception as failure:  # noqa: BLE001 (a dead worker, a full queue: neither is anybody's answer)
            copy.failed(failure)


class _Copy:
    """Who waits for the canary's answer to one copy."""

    is_over = False

    def __init__(self, copier: Copier, trial: Trial, expected: Answers, seconds: float, *, replayed: bool) -> None:
        self._copier = copier
        self._trial = trial
        self._expected = expected
        self._stable_seconds = seconds
        self._replayed = replayed
        self._started = perf_counter()

    def answered(self, answers: Answers, begin: int, end: int) -> None:
        own = {name: tensor[begin:end] for name, tensor in answers.items()}
        self._settle(failed=False, differs=not agree(self._expected, own, self._copier.tolerance))

    def failed(self, failure: Exception) -> None:
        if isinstance(failure, WorkerLost | Overloaded):
            # A death counts for itself, and a full queue is our own doing: a copy may be dropped.
            self._copier.num_unanswered -= 1
            self._copier.num_dropped += not self._replayed
            return
        # Refused rows that the stable version answered are another answer, not a failing worker.
        self._settle(failed=isinstance(failure, EndpointUnavailable), differs=True)

    def _settle(self, *, failed: bool, differs: bool) -> None:
        self._copier.num_unanswered -= 1
        self._trial.count_copy(
            failed=failed,
            differs=differs,
            seconds=perf_counter() - self._started,
            stable_seconds=self._stable_seconds,
            replayed=self._replayed,
        )


def agree(expected: Answers, answered: Answers, tolerance: float) -> bool:
    """Whether two versions say the same of the same rows.

    Numbers must be finite. Labels must be equal, whatever their probabilities are; where there are none (a regression),
    numbers may differ by ``tolerance`` times the larger of 1 and what was expected.
    """
    decoded = [name for name in expected if name != RAW_OUTPUTS] or [RAW_OUTPUTS]
    if set(expected) != set(answered) or not are_finite(answered):
        return False
    labels = [name for name in decoded if not _are_floats(expected[name])]
    return all(_same(expected[name], answered[name], tolerance) for name in labels or decoded)


def are_finite(answers: Answers) -> bool:
    """Whether every number of an answer is one."""
    return all(bool(np.isfinite(tensor).all()) for tensor in answers.values() if isinstance(tensor, np.ndarray))


def _are_floats(values: Tensor) -> bool:
    return isinstance(values, np.ndarray) and values.dtype.kind == "f"


def _same(expected: Tensor, answered: Tensor, tolerance: float) -> bool:
    if not (isinstance(expected, np.ndarray) and isinstance(answered, np.ndarray)):
        return list(expected) == list(answered)
    if expected.shape != answered.shape:
        return False
    if expected.dtype.kind != "f":
        return bool((expected == answered).all())
    return bool((np.abs(answered - expected) <= tolerance * np.maximum(1, np.abs(expected))).all())
