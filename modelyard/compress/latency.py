"""How long a form takes on this machine. A measurement: never part of a digest."""

from __future__ import annotations

import statistics
import time

import numpy as np

from modelyard.runtime import Runtime

WARM_UP_RUNS = 20


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
