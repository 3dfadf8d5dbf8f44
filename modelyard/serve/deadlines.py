"""One timer for many waits of the same length: a timer of its own costs each request more than its routing."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

# An expiry comes at most this late.
GRAIN_SECONDS = 0.05


class Perishable(Protocol):
    """Something that ends by itself, or is told that its time is over."""

    @property
    def is_over(self) -> bool: ...

    def expire(self) -> None: ...


class Deadlines:
    """Tells what is not over after ``seconds`` that it is late."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[float, Perishable]] = deque()  # the oldest first, as all wait alike
        self._timer: asyncio.TimerHandle | None = None

    def add(self, waiting: Perishable) -> None:
        self._waiting.append((self._loop.time() + self._seconds, waiting))
        if self._timer is None:
            self._timer = self._loop.call_later(GRAIN_SECONDS, self._sweep)

    def _sweep(self) -> None:
        now = self._loop.time()
        while self._waiting and (self._waiting[0][1].is_over or self._waiting[0][0] <= now):
            _, waiting = self._waiting.popleft()
            if not waiting.is_over:
                waiting.expire()
        self._timer = self._loop.call_later(GRAIN_SECONDS, self._sweep) if self._waiting else None
