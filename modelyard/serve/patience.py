"""How long a worker may take for a call before it is held to hang: long against what calls of that size take."""

from __future__ import annotations

TIMES = 20  # the time that as many bytes usually take
WEIGHT = 1 / 8  # of the last call


class Patience:
    """Learns from each answer.

    Args:
        least: seconds that any call may take: a machine may stand still for a moment.
        most: seconds that none may take, and what is allowed until something is known.
    """

    def __init__(self, least: float, most: float) -> None:
        self._least = min(least, most)
        self._most = most
        self._seconds_a_byte: float | None = None

    def allowed(self, num_bytes: int) -> float:
        """Seconds for calls of so many bytes together."""
        if self._seconds_a_byte is None:
            return self._most
        return min(self._most, max(self._least, TIMES * self._seconds_a_byte * num_bytes))

    def learn(self, num_bytes: int, seconds: float) -> None:
        """Calls of so many bytes together took so long."""
        known, found = self._seconds_a_byte, seconds / max(1, num_bytes)
        self._seconds_a_byte = found if known is None else known + (found - known) * WEIGHT
