"""Which of two versions is slow: requests that came at the same time are compared in pairs.

A worker that waits for a processor is slow for everything it was asked meanwhile, so one request of each version in a
tenth of a second is enough, and more would be the same event again.
"""

from __future__ import annotations

import time

from modelyard.gates import GateSettings

# Answers of the stable version from which the threshold of a slow one is fixed.
CALIBRATION_ANSWERS = 200
PAIR_SECONDS = 0.1  # longer than most stalls of a worker that waits for a processor
PAIRS_KEPT = 200  # whose other half is not answered yet, or never came
KEYS_KEPT = 100_000


class Keys:
    """Keys that were met before."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def is_first(self, key: bytes) -> bool:
        """Whether a key is new, and can still be remembered."""
        if key in self._seen or len(self._seen) >= KEYS_KEPT:
            return False
        self._seen.add(key)
        return True


class LatencyPairs:
    """Pairs of requests, one of the stable version and one of the canary.

    Attributes:
        slow_seconds: from where on an answer is slow; None until the stable version has answered often enough.
    """

    def __init__(self, gates: GateSettings, slow_seconds: float | None) -> None:
        self.slow_seconds = slow_seconds
        self._gates = gates
        self._calibration: list[float] = []
        self._keys = Keys()
        self._entered = [-1, -1]  # the window of the last request that became half of a pair: stable, canary
        self._halves: dict[tuple[int, bool], bool] = {}  # (window, is the canary's) -> was slow

    def enter(self, is_canary: bool, key: bytes | None) -> int | None:
        """A request was drawn; the pair that it belongs to, if any: pass it to `settle`.

        The first request of each version within `PAIR_SECONDS` make a pair; of those with one key, one is enough.
        """
        if key and not self._keys.is_first(key):
            return None
        window = int(time.monotonic() / PAIR_SECONDS)
        if self._entered[is_canary] == window:
            return None
        self._entered[is_canary] = window
        return window

    def settle(self, is_canary: bool, seconds: float, pair: int | None) -> bool | None:
        """A request has got its answer: whose of its pair alone was slow (True: the canary's); None while that is open."""
        if self.slow_seconds is None:
            self._calibrate(is_canary, seconds)
            return None
        if pair is None:
            return None
        other = self._halves.pop((pair, not is_canary), None)
        is_slow = seconds > self.slow_seconds
        if other is None:
            self._halves[pair, is_canary] = is_slow
            if len(self._halves) > PAIRS_KEPT:
                del self._halves[next(iter(self._halves))]
            return None
        if is_slow == other:
            return None
        return is_canary if is_slow else not is_canary

    def match(self, stable_seconds: float, canary_seconds: float) -> bool | None:
        """Both halves at once, of a request that was copied; as `settle`, one in `PAIR_SECONDS`."""
        window = int(time.monotonic() / PAIR_SECONDS)
        if self.slow_seconds is None or self._entered[True] == window:
            return None
        self._entered[True] = window
        stable_is_slow, canary_is_slow = stable_seconds > self.slow_seconds, canary_seconds > self.slow_seconds
        return canary_is_slow if stable_is_slow != canary_is_slow else None

    def _calibrate(self, is_canary: bool, seconds: float) -> None:
        """Fix the threshold from the stable version's first answers; only later ones are held against it."""
        if is_canary:
            return
        self._calibration.append(seconds)
        if len(self._calibration) >= CALIBRATION_ANSWERS:
            place = int(self._gates.latency_quantile * len(self._calibration))
            quantile = sorted(self._calibration)[place]
            self.slow_seconds = max(quantile * self._gates.latency_slack, self._gates.latency_floor_seconds)
