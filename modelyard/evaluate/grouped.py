"""The bootstrap for scores that are no counts: losses, errors, R2, calibration.

Such a score is a function of sums over rows. The rows are dealt out to groups in turn, and only each group's sums are
kept; drawing groups with replacement then stands for drawing rows. With fewer rows than groups it is the plain
bootstrap; with more, groups of rows that have nothing to do with each other vary as rows do, and the width of the
interval is known to about 1/sqrt(2 * NUM_GROUPS) = 1.1 % (Kleiner et al., A scalable bootstrap for massive data, 2014,
section 2, on cutting rows into blocks). Memory does not grow with the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

NUM_GROUPS = 4096
DRAWS_AT_A_TIME = 10_000_000

# From sums (b, width) to one score each (b,).
SumStatistic = Callable[[np.ndarray], np.ndarray]


class GroupedSums:
    """Sums of some quantities of each row, (NUM_GROUPS, width); rows go to the groups in turn.

    Two of them that saw the same rows in the same order have the same rows in each group.
    """

    def __init__(self, width: int) -> None:
        self._sums = np.zeros((NUM_GROUPS, width))
        self._num_rows = 0

    def add(self, quantities: np.ndarray) -> None:
        """Count rows, (n, width)."""
        done = 0
        while done < len(quantities):
            group = self._num_rows % NUM_GROUPS
            part = quantities[done : done + NUM_GROUPS - group]
            self._sums[group : group + len(part)] += part
            self._num_rows += len(part)
            done += len(part)

    @property
    def groups(self) -> np.ndarray:
        """Those that have rows, (g, width)."""
        return self._sums[: min(self._num_rows, NUM_GROUPS)]

    @property
    def total(self) -> np.ndarray:
        """(width,)."""
        return self._sums.sum(axis=0)


def resample(parts: Sequence[GroupedSums], rng: np.random.Generator, resamples: int) -> list[np.ndarray]:
    """Sums over resampled rows, (resamples, width) for each of ``parts``, which saw the same rows: the same draw for all.

    Raises:
        ValueError: no row at all.
    """
    num_groups = len(parts[0].groups)
    if not num_groups:
        raise ValueError("nothing to resample")
    drawn = [[weights @ part.groups for part in parts] for weights in _weights(num_groups, rng, resamples)]
    return [np.concatenate(of_part) for of_part in zip(*drawn, strict=True)]


def resampled_means(values: np.ndarray, rng: np.random.Generator, resamples: int) -> np.ndarray:
    """Means of groups' values (g,) drawn with replacement, (resamples,)."""
    drawn = [weights @ values for weights in _weights(len(values), rng, resamples)]
    return np.concatenate(drawn) / len(values)


def _weights(num_groups: int, rng: np.random.Generator, resamples: int) -> Iterator[np.ndarray]:
    """How often each group is drawn, (b, g), in portions that fit into memory."""
    portion = max(1, DRAWS_AT_A_TIME // num_groups)
    for start in range(0, resamples, portion):
        count = min(portion, resamples - start)
        drawn = rng.integers(num_groups, size=(count, num_groups)) + num_groups * np.arange(count)[:, None]
        yield np.bincount(drawn.ravel(), minlength=count * num_groups).reshape(count, num_groups).astype(np.float64)
