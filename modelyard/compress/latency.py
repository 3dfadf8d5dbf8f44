"""How long a form takes on this machine. A measurement: never part of a digest."""

from __future__ import annotations

import gc
import math
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from modelyard.runtime import Runtime

WARM_UP_RUNS = 20
# A turn of calls of a few microseconds needs many of them, or one interruption decides it.
TURN_SECONDS = 0.01
MAX_CALLS = 2000
MOST_TIMES = 5


class Ratio(Protocol):
    """A latency over the reference's, and how far it could have come out otherwise, as a fraction."""

    @property
    def ratio(self) -> float: ...

    @property
    def noise(self) -> float: ...


@dataclass(frozen=True)
class Timing:
    """Calls of one form at one batch size; the fields of `modelyard.compress.search.Latency`."""

    p50_ms: float
    p99_ms: float
    ratio: float
    noise: float


def median_milliseconds(runtime: Runtime, features: np.ndarray, batch: int, repeats: int) -> float:
    """Median time in ms of one call with ``batch`` rows, taken from ``features`` (n, width) round and round."""
    inputs = np.ascontiguousarray(np.resize(features, (batch, features.shape[1])))
    for _ in range(min(WARM_UP_RUNS, repeats)):
        runtime.run(inputs)
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        runtime.run(inputs)
        taken.append(time.perf_counter() - started)
    return round(statistics.median(taken) * 1e3, 4)


def measure_in_turns(
    runtimes: Mapping[str, Runtime],
    features: np.ndarray,
    batch: int,
    *,
    reference: str,
    rounds: int,
    repeats: int,
    enough: float = math.inf,
) -> dict[str, Timing]:
    """Time several forms in turns, in an order drawn anew for each: what else the machine does meets all alike.

    Args:
        features: (n, width) rows, taken round and round.
        reference: the form whose time in the same turn each form's is divided by.
        repeats: calls of each form, at least, over all rounds.
        enough: the noise that every form's ratio should come down to: until then there are more rounds, up to
            `MOST_TIMES` as many. A busy machine is measured longer, not worse.
    """
    inputs = np.ascontiguousarray(np.resize(features, (batch, features.shape[1])))
    draw = random.Random(0)
    taken: dict[str, list[list[float]]] = {name: [] for name in runtimes}
    calls = math.ceil(repeats / rounds)
    for runtime in runtimes.values():
        for _ in range(WARM_UP_RUNS):
            runtime.run(inputs)
    gc.disable()  # a collection would fall on whoever's turn it is
    try:
        for number in range(1, MOST_TIMES * rounds + 1):
            for name in draw.sample(list(runtimes), len(runtimes)):
                taken[name].append(_one_turn(runtimes[name], inputs, calls))
            if number % rounds == 0:
                timings = {name: _timing(turns, taken[reference]) for name, turns in taken.items()}
                if all(timing.noise <= enough for timing in timings.values()):
                    break
    finally:
        gc.enable()
    return timings


def combined(takes: Sequence[Timing]) -> Timing:
    """One form as several processes measured it, one after the other, each for itself.

    They differ by more than the turns of any one of them tell (measured: by 3 % where those said 1 %): where memory lies, and
    what else ran meanwhile. So the noise is Student's interval of the mean over processes, or that of the turns if it is wider.
    """
    from scipy.special import stdtrit

    ratios = np.array([take.ratio for take in takes])
    ratio, count = float(ratios.mean()), len(takes)
    within = math.hypot(*(take.noise for take in takes)) / count
    between = float(stdtrit(count - 1, 0.975) * ratios.std(ddof=1)) / math.sqrt(count) / ratio if count > 1 else 0.0
    return Timing(
        p50_ms=round(statistics.median(take.p50_ms for take in takes), 5),
        p99_ms=round(statistics.median(take.p99_ms for take in takes), 5),
        ratio=round(ratio, 4),
        noise=round(max(within, between), 4),
    )


def slower_by(mine: Ratio, other: Ratio) -> tuple[float, float]:
    """Ends of the interval in which the quotient of two latencies lies, each known up to its noise: 0.1 is 10 % slower."""
    quotient, spread = mine.ratio / other.ratio, math.hypot(mine.noise, other.noise)
    return quotient * (1 - spread) - 1, quotient * (1 + spread) - 1


def is_settled(timings: Mapping[str, Timing], tie_fraction: float) -> bool:
    """Whether it is known of each form if it is slower than the fastest by more than that, or not."""
    fastest = min(timings.values(), key=lambda timing: timing.ratio)
    ends = [slower_by(timing, fastest) for timing in timings.values() if timing is not fastest]
    return not any(low <= tie_fraction < high for low, high in ends)


def _one_turn(runtime: Runtime, inputs: np.ndarray, calls: int) -> list[float]:
    """Seconds of each call: at least so many calls, and as many more as fit into `TURN_SECONDS`."""
    taken: list[float] = []
    began = time.perf_counter()
    while len(taken) < calls or (time.perf_counter() - began < TURN_SECONDS and len(taken) < MAX_CALLS):
        started = time.perf_counter()
        runtime.run(inputs)
        taken.append(time.perf_counter() - started)
    return taken


def _timing(turns: list[list[float]], reference: list[list[float]]) -> Timing:
    every = np.concatenate(turns) * 1e3
    ratios = np.array([np.median(own) / np.median(its) for own, its in zip(turns, reference, strict=True)])
    ratio = float(np.median(ratios))
    # Standard error of a median, from the median absolute deviation: 1.4826 and 1.2533 hold for normal noise.
    spread = 1.4826 * float(np.median(np.abs(ratios - ratio)))
    noise = 1.96 * 1.2533 * spread / math.sqrt(len(ratios)) / ratio
    return Timing(
        p50_ms=round(float(np.median(every)), 5),
        p99_ms=round(float(np.quantile(every, 0.99)), 5),
        ratio=round(ratio, 4),
        noise=round(noise, 4),
    )
