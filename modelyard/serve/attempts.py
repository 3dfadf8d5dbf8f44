"""What became of the revisions that were tried, and whether one may be tried now. Knows the clock, and no store."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from modelyard.revisions import Revision


@dataclass(kw_only=True)
class Progress:
    """Where this replica stands.

    Attributes:
        attempted: number of the last revision it tried.
        error: why that one was not taken over.
        is_known: whether it has learned, from the bucket or the local state, what to serve.
    """

    attempted: int = 0
    error: str | None = None
    is_known: bool = False


def reached(number: int) -> Progress:
    """A revision is in force."""
    return Progress(attempted=number, is_known=True)


class Attempts:
    """The last revision that was tried: refused for good, resting before it is tried again, or in force.

    Args:
        first, longest: seconds of rest after a failure in passing; doubled with each, up to the longest.
    """

    def __init__(self, first: float, longest: float) -> None:
        self._first, self._longest = first, longest
        self._tried, self._since = 0, 0.0
        self._refused: int | None = None
        self._num_failures = 0
        self._retry_at = 0.0

    def may_try(self, revision: Revision) -> bool:
        """Whether it is neither refused nor resting."""
        is_resting = revision.number == self._tried and time.monotonic() < self._retry_at
        return revision.number != self._refused and not is_resting

    def begin(self, revision: Revision) -> None:
        """It is tried now, for the first time or again."""
        if self._tried != revision.number:
            self._tried, self._since, self._retry_at = revision.number, time.monotonic(), 0.0

    def refuse(self, revision: Revision) -> None:
        """It would fail again: it is not tried until somebody asks."""
        self._refused = revision.number

    def rest(self) -> None:
        """It failed in passing."""
        self._num_failures += 1
        pause_seconds = min(self._longest, self._first * 2 ** min(self._num_failures - 1, 16))
        self._retry_at = time.monotonic() + pause_seconds

    def succeed(self) -> None:
        """A revision is in force: the next failure rests shortly."""
        self._num_failures = 0

    def forgive(self) -> None:
        """Somebody asks: what was refused or rests may be tried at once."""
        self._refused = None
        self._retry_at = 0.0

    def loading_seconds(self, revision: Revision) -> tuple[float | None, float]:
        """What is left of the time in which a revision's canaries must be loaded, None without any; and all of it."""
        bounds = [state.rollout.policy.load_seconds for state in revision.models.values() if state.rollout]
        if not bounds:
            return None, math.inf
        passed = time.monotonic() - self._since if self._tried == revision.number else 0.0
        return min(bounds) - passed, min(bounds)

    def is_beyond_loading(self, revision: Revision) -> bool:
        """Whether the rollouts that a revision begins have had their time to load the canary."""
        left, _ = self.loading_seconds(revision)
        return left is not None and left <= 0
