"""Does a classifier rank: the area under the ROC curve and its interval, streaming and of fixed size."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from modelyard.evaluate.grouped import resampled_means
from modelyard.evaluate.intervals import Interval, percentiles, unseen
from modelyard.metrics import softmax

NUM_RANKS = 4096
MAX_RANKED_CLASSES = 200  # one pass over the batch for each class
# Of the groups: steps of 1/8 of the log odds from -16 to 16. Confident models differ near 0 and 1.
LOG_ODDS, STEPS = 16.0, 8
NUM_STEPS = int(2 * LOG_ODDS * STEPS)
MAX_GROUPS = 1024
MAX_CELLS = 8_000_000  # of the groups' counts, 32 MB
CELLS_AT_A_TIME = 4_000_000


class Ranking:
    """Area under the ROC curve, one class against the rest, mean over the classes that have rows of both kinds.

    Scores are counted in `NUM_RANKS` bins of the probability, equal ones counting half, so the area is exact up to
    pairs that fall into one bin. State: (2, k, NUM_RANKS), row 1: rows of the class. For the interval rows are dealt out
    to groups in turn, and counted for each group in steps of the log odds.
    """

    def __init__(self, num_classes: int) -> None:
        self.state = np.zeros((2, num_classes, NUM_RANKS), dtype=np.int64)
        self._num_classes = num_classes if num_classes <= MAX_RANKED_CLASSES else 0
        num_groups = min(MAX_GROUPS, MAX_CELLS // (2 * max(self._num_classes, 1) * NUM_STEPS))
        self._groups = np.zeros((num_groups, 2, self._num_classes, NUM_STEPS), dtype=np.int32)
        self._num_rows = 0

    def update(self, outputs: np.ndarray, targets: np.ndarray) -> None:
        """Count raw outputs (n, k) and class numbers (n,)."""
        probabilities = np.nan_to_num(softmax(outputs.astype(np.float64)))
        ranks = np.minimum((probabilities * NUM_RANKS).astype(np.int64), NUM_RANKS - 1)
        steps = _log_odds_steps(probabilities)
        group = (self._num_rows + np.arange(len(targets))) % len(self._groups)
        for number in range(self._num_classes):
            is_class = targets == number
            self.state[1, number] += np.bincount(ranks[is_class, number], minlength=NUM_RANKS)
            self.state[0, number] += np.bincount(ranks[~is_class, number], minlength=NUM_RANKS)
            where = (group, is_class.astype(np.int64), number, steps[:, number])
            np.add.at(self._groups.reshape(-1), np.ravel_multi_index(where, self._groups.shape), 1)
        self._num_rows += len(targets)

    @property
    def area(self) -> float:
        """NaN where no class has rows of both kinds, or there are more than `MAX_RANKED_CLASSES` classes."""
        return float(_mean_area(self.state[None])[0])

    def interval(self, rng: np.random.Generator, *, resamples: int, confidence: float) -> Interval | None:
        """Bootstrap interval of `area`; None where there is no area, or it hangs on the rows of a single group.

        The area is no sum over rows, so what is resampled is what each group adds to it: the jackknife's pseudo-values
        (Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapter 11), whose mean is the area to first order.
        """
        groups = self._groups[: min(self._num_rows, len(self._groups))]
        area = self.area
        if not np.isfinite(area) or len(groups) < 2:
            return None
        whole = groups.sum(axis=0, dtype=np.int64)
        without = np.concatenate([_mean_area(whole - part) for part in _portions(groups)])
        if not np.isfinite(without).all():
            return None
        values = area + (len(groups) - 1) * (float(_mean_area(whole[None])[0]) - without)
        found = percentiles(area, np.clip(resampled_means(values, rng, resamples), 0.0, 1.0), confidence)
        if area < 1:
            return found
        return found.model_copy(update={"low": min(found.low, self._low_of_perfect(confidence))})

    def _low_of_perfect(self, confidence: float) -> float:
        """How low the area may be where every pair was ranked rightly, mean over the classes.

        Each row of the rarer side with one of its own of the other: so many pairs have nothing to do with each other, and
        are ranked rightly with the probability that is the area.
        """
        rarer = self.state.sum(axis=2).min(axis=0)
        return float(np.mean([1 - unseen(int(rows), confidence) for rows in rarer if rows]))


def _log_odds_steps(probabilities: np.ndarray) -> np.ndarray:
    """The step that the log odds of each probability fall into, of the same shape."""
    tiny = np.exp(-LOG_ODDS - 1)
    odds = np.log(np.maximum(probabilities, tiny)) - np.log(np.maximum(1 - probabilities, tiny))
    return np.clip((odds + LOG_ODDS) * STEPS, 0, NUM_STEPS - 1).astype(np.int64)


def _mean_area(counts: np.ndarray) -> np.ndarray:
    """From counts (..., 2, k, bins) in rising order of score, second axis: others, own; to the mean area (...)."""
    others, own = counts[..., 0, :, :].astype(np.float64), counts[..., 1, :, :].astype(np.float64)
    below = np.cumsum(others, axis=-1) - others
    pairs = own.sum(axis=-1) * others.sum(axis=-1)
    areas = (own * (below + others / 2)).sum(axis=-1) / np.where(pairs > 0, pairs, np.nan)
    usable = np.isfinite(areas)
    return np.where(usable, areas, 0.0).sum(axis=-1) / np.where(usable.any(axis=-1), usable.sum(axis=-1), np.nan)


def _portions(groups: np.ndarray) -> Iterator[np.ndarray]:
    """Parts of the groups that fit into memory."""
    portion = max(1, CELLS_AT_A_TIME // max(1, groups[0].size))
    for start in range(0, len(groups), portion):
        yield groups[start : start + portion]
