"""How much worse a candidate is than its float parent, and how much worse it could still be. Counts in, numbers out.

Both models answered the same validation rows, so everything here is paired.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from statistics import NormalDist

import numpy as np

from modelyard.artifacts import Frozen
from modelyard.compress.budget import DropLimit
from modelyard.metrics import LOWER_IS_BETTER, Metric

RESAMPLES = 1000
BISECTIONS = 40  # halves an interval of 1 to 1e-12
MAX_BLOCKS = 400
# Numbers held at once for the blocks of one model: 160 MB.
MAX_STATE_NUMBERS = 20_000_000


class Drop(Frozen):
    """One metric of a candidate beside its float parent's. Above 0 the candidate is worse, whichever way is better.

    Attributes:
        bound: upper end of the one-sided confidence interval on the drop.
    """

    reference: float
    value: float
    drop: float
    bound: float


class PairedBlocks:
    """Metrics of two models over blocks of rows.

    A metric's state adds up over rows, so resampling blocks of states is resampling rows in blocks, for any metric.
    """

    def __init__(self, new_metric: Callable[[], Metric], num_rows: int) -> None:
        self._new_metric = new_metric
        width = max(1, new_metric().state.size)
        most = max(30, min(MAX_BLOCKS, MAX_STATE_NUMBERS // width))
        self._block_rows = max(1, math.ceil(num_rows / most))
        self._reference: list[np.ndarray] = []
        self._candidate: list[np.ndarray] = []
        self.num_rows = self.only_reference_right = self.only_candidate_right = 0

    def update(self, reference: np.ndarray, candidate: np.ndarray, targets: np.ndarray) -> None:
        """Count outputs (n, k) of both models for the same rows, with targets (n,), or vectors (n, k) as the targets of
        vectors; or (n, t, k) with (n, t)."""
        for start in range(0, len(targets), self._block_rows):
            rows = slice(start, start + self._block_rows)
            self._reference.append(self._state(reference[rows], targets[rows]))
            self._candidate.append(self._state(candidate[rows], targets[rows]))
        self.num_rows += len(targets)
        if targets.ndim == 1 and reference.ndim == 2 and reference.shape[1] > 1:
            right, other = reference.argmax(axis=1) == targets, candidate.argmax(axis=1) == targets
            self.only_reference_right += int((right & ~other).sum())
            self.only_candidate_right += int((other & ~right).sum())

    def drops(self, confidence: float, seed: int = 0) -> dict[str, Drop]:
        """Every metric's drop with its bound: Tango's interval for accuracy, the paired bootstrap for the others."""
        reference, candidate = np.stack(self._reference), np.stack(self._candidate)
        before, after = self._compute(reference.sum(axis=0)), self._compute(candidate.sum(axis=0))
        bounds = self._bootstrap(reference, candidate, confidence, seed)
        if "accuracy" in before:
            counts = (self.only_reference_right, self.only_candidate_right, self.num_rows)
            bounds["accuracy"] = paired_difference_bound(*counts, confidence)
        return {
            name: Drop(
                reference=before[name], value=after[name], drop=_worse(name, before[name], after[name]), bound=bound
            )
            for name, bound in bounds.items()
        }

    def _bootstrap(
        self, reference: np.ndarray, candidate: np.ndarray, confidence: float, seed: int
    ) -> dict[str, float]:
        """Upper percentiles of the paired block bootstrap (Efron & Tibshirani 1993, chapter 8)."""
        rng, blocks = np.random.default_rng(seed), len(reference)
        found: dict[str, list[float]] = {}
        for _ in range(RESAMPLES):
            weights = np.bincount(rng.integers(0, blocks, blocks), minlength=blocks).astype(np.float64)
            before, after = self._compute(weights @ reference), self._compute(weights @ candidate)
            for name, value in before.items():
                found.setdefault(name, []).append(_worse(name, value, after[name]))
        return {name: float(np.quantile(values, confidence)) for name, values in found.items()}

    def _state(self, outputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
        metric = self._new_metric()
        metric.update(outputs, targets)
        return metric.state.copy()

    def _compute(self, state: np.ndarray) -> dict[str, float]:
        metric = self._new_metric()
        metric.state = state
        return metric.compute()


def paired_difference_bound(only_first: int, only_second: int, num_rows: int, confidence: float) -> float:
    """Upper confidence bound of (first - second) of two proportions on the same rows.

    The score interval of Tango (1998), Statistics in Medicine 17:891-908. Unlike the bootstrap it does not shrink to
    nothing where the two never differ: then it is z^2 / (n + z^2), close to the rule of three.

    Args:
        only_first: rows on which the first alone is right.
        only_second: rows on which the second alone is right.
    """
    if not num_rows:
        return 1.0
    z = NormalDist().inv_cdf(confidence)

    def excess(difference: float) -> float:
        return _score(only_first, only_second, num_rows, difference) + z

    low, high = (only_first - only_second) / num_rows, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return high


def _score(only_first: int, only_second: int, num_rows: int, difference: float) -> float:
    """Tango's statistic of the hypothesis that the difference is that much."""
    b, c, n, d = only_first, only_second, num_rows, difference
    quadratic, linear, constant = 2 * n, -b - c + (2 * n - b + c) * d, -c * d * (1 - d)
    rare = (math.sqrt(max(linear**2 - 4 * quadratic * constant, 0.0)) - linear) / (2 * quadratic)
    variance = n * (2 * rare + d * (1 - d))
    return 0.0 if variance <= 0 else (b - c - n * d) / math.sqrt(variance)


def broken_limits(drops: Mapping[str, Drop], limits: Mapping[str, DropLimit]) -> list[str]:
    """A sentence on each limit that is broken, or that names no metric."""
    return [sentence for name, limit in limits.items() if (sentence := _broken(name, drops.get(name), limit))]


def _broken(name: str, drop: Drop | None, limit: DropLimit) -> str:
    if drop is None:
        return f"{name} is no metric of this task"
    absolute = math.inf if limit.absolute is None else limit.absolute
    relative = math.inf if limit.relative is None else limit.relative * abs(drop.reference)
    allowed = min(absolute, relative)
    if drop.bound <= allowed:  # NaN breaks it
        return ""
    moves = "rise" if name in LOWER_IS_BETTER else "fall"
    return f"{name} {moves}s by {drop.drop:.4g} and may {moves} by {drop.bound:.4g}, allowed is {allowed:.4g}"


def _worse(name: str, before: float, after: float) -> float:
    return after - before if name in LOWER_IS_BETTER else before - after
