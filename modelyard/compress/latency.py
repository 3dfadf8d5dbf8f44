"""How long a form takes on this machine. A measurement: never part of a digest."""

from __future__ import annotations

import gc
import math
import random
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from modelyard.runtime import Runtime

WARM_UP_RUNS = 20
# A turn of calls of a few microseconds needs many of them, or one interruption decides it.
TURN_SECONDS = 0.01
MAX_CALLS = 2000
MOST_TIMES = 5


@dataclass(frozen=True)
class Timing:
    """Calls of one form at one batch size; the fields of `modelyard.compress.outcomes.Latency`."""

    p50_ms: float
    p99_ms: float
    ratio: float
    noise: float
    takes: Mapping[int, float] = field(default_factory=dict)


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
