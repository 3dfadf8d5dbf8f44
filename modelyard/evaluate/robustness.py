"""What a little disorder does to the score: noise, gaps and shuffled columns in the network's input.

No gradients are needed, so every form that can be served is judged as it will be served.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

NOISE_DEVIATIONS = 0.1  # of each column's own standard deviation
DISTURBED_FRACTION = 0.1  # of the values that go missing, of the columns that are shuffled

Disturbance = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def noise(inputs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise on every value of (n, width)."""
    scale = NOISE_DEVIATIONS * inputs.std(axis=0)
    return (inputs + rng.normal(size=inputs.shape) * scale).astype(inputs.dtype)


def missing(inputs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Some values of (n, width) replaced by the mean of their column, as a client that fills gaps does."""
    gaps = rng.random(inputs.shape) < DISTURBED_FRACTION
    return np.where(gaps, inputs.mean(axis=0), inputs).astype(inputs.dtype)


def shuffled(inputs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Some columns of (n, width), at least one, exchanged among the rows: the model must not hang on one alone."""
    width = inputs.shape[1]
    chosen = rng.choice(width, size=max(1, round(DISTURBED_FRACTION * width)), replace=False)
    disturbed = inputs.copy()
    for column in chosen:
        disturbed[:, column] = rng.permutation(inputs[:, column])
    return disturbed


DISTURBANCES: Mapping[str, Disturbance] = {"noise": noise, "missing": missing, "shuffled": shuffled}
