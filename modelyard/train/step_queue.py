"""Who makes which step when workers do not wait for each other."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence


class StepQueue:
    """Which worker makes which step, and when it may begin: the first server's part, without any message.

    Args:
        numbers: of the steps until ranks meet.
        staleness: the most updates that may come between a worker's beginning and its update.
        version: updates made so far.
    """

    def __init__(self, numbers: Sequence[int], staleness: int, version: int) -> None:
        self._left = deque(numbers)
        self._staleness = staleness
        self._version = version
        self._under_way: dict[int, int] = {}  # worker -> version when it began
        self._waiting: deque[int] = deque()

    def ask(self, worker: int) -> None:
        """A worker is free."""
        self._waiting.append(worker)

    def done(self, worker: int, version: int) -> None:
        """A worker's update is in."""
        self._under_way.pop(worker, None)
        self._version = version

    def granted(self) -> list[tuple[int, int | None]]:
        """Workers that need wait no longer, each with its step; None: none is left."""
        found: list[tuple[int, int | None]] = []
        while self._waiting and (not self._left or self._may_begin()):
            worker = self._waiting.popleft()
            if self._left:
                self._under_way[worker] = self._version
            found.append((worker, self._left.popleft() if self._left else None))
        return found

    def _may_begin(self) -> bool:
        """Whether everybody stays within the bound if the one that begins and all others finish before them."""
        others = len(self._under_way)
        oldest = min(self._under_way.values(), default=self._version)
        return others <= self._staleness and self._version - oldest + others <= self._staleness
