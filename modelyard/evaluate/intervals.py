"""How sure a score is: bootstrap intervals, and the paired comparison of two models. Counts in, numbers out.

Accuracy and F1 depend on the rows only through counts of (truth, answer). Drawing n rows with replacement is then
drawing the counts from a multinomial distribution, so the bootstrap here is the exact one, and its cost depends on the
number of classes, not of rows (Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapter 6).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from scipy import sparse, stats

from modelyard.artifacts import Frozen

# Draws held in memory at a time: 80 MB of float64.
DRAWS_AT_A_TIME = 10_000_000


class Margins(NamedTuple):
    """What a score needs of confusion matrices (..., k, k): of each class the rows that are right, that are of it, and that
    were taken for it; (..., k) each. A thousand classes have a million cells, and a thousand of these."""

    hits: np.ndarray
    truth: np.ndarray
    answers: np.ndarray

    @classmethod
    def of(cls, confusions: np.ndarray) -> Margins:
        """Of whole matrices, row: truth."""
        return cls(np.diagonal(confusions, axis1=-2, axis2=-1), confusions.sum(axis=-1), confusions.sum(axis=-2))


# To one score each (...).
Statistic = Callable[[Margins], np.ndarray]


class Interval(Frozen):
    """A score with its percentile bootstrap interval."""

    value: float
    low: float
    high: float
    confidence: float

    @property
    def is_finite(self) -> bool:
        """Whether there is a number at all: a model that answers NaN has none."""
        return bool(np.isfinite([self.value, self.low, self.high]).all())


class Comparison(Frozen):
    """Two models on the same rows.

    Attributes:
        difference: candidate minus champion, with its interval.
        probability_better: share of the resamples in which the candidate scored higher, ties counting half.
        only_candidate_right: rows that the candidate alone got right; for a regression, on which it is closer.
        only_champion_right: rows that the champion alone got right, or on which it is closer.
        p_value: of McNemar's exact test that both are right (for a regression, closer) equally often, two-sided.
    """

    difference: Interval
    probability_better: float
    only_candidate_right: int
    only_champion_right: int
    p_value: float


def accuracy(margins: Margins) -> np.ndarray:
    """Share of the rows on the diagonal."""
    return margins.hits.sum(axis=-1) / np.maximum(margins.truth.sum(axis=-1), 1)


def macro_f1(margins: Margins) -> np.ndarray:
    """Mean F1 over the classes; a class without rows and answers counts as 0, as in `ClassificationMetrics`."""
    return (2 * margins.hits / np.maximum(margins.truth + margins.answers, 1)).mean(axis=-1)


STATISTICS: dict[str, Statistic] = {"accuracy": accuracy, "macro_f1": macro_f1}


def interval(
    confusion: np.ndarray, statistic: Statistic, rng: np.random.Generator, *, resamples: int, confidence: float
) -> Interval:
    """Bootstrap interval of one score, as `intervals` has it."""
    return intervals(confusion, {"": statistic}, rng, resamples=resamples, confidence=confidence)[""]


def intervals(
    confusion: np.ndarray,
    statistics: Mapping[str, Statistic],
    rng: np.random.Generator,
    *,
    resamples: int,
    confidence: float,
) -> dict[str, Interval]:
    """Bootstrap intervals of scores, by name, over the same draws.

    Where all rows are right, or all wrong, resampling sees no variation and would say that the score is certain. Then the
    interval reaches to the score with the share of other answers that such a sample may still come from (`unseen`).

    Args:
        confusion: (k, k) counts, row: truth.
    """
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in statistics}
    for margins in _resampled(confusion, rng, resamples):
        for name, statistic in statistics.items():
            drawn[name].append(statistic(margins))
    whole = Margins.of(confusion.astype(np.float64))
    found = {
        name: percentiles(float(statistic(whole)), np.concatenate(drawn[name]), confidence)
        for name, statistic in statistics.items()
    }
    rows, right = int(confusion.sum()), int(np.trace(confusion))
    if not rows or len(confusion) < 2 or 0 < right < rows:
        return found
    share = unseen(rows, confidence)
    other = Margins.of((1 - share) * confusion + share * _otherwise(confusion))
    reached = {name: float(statistic(other)) for name, statistic in statistics.items()}
    return {
        name: one.model_copy(update={"low": min(one.low, reached[name]), "high": max(one.high, reached[name])})
        for name, one in found.items()
    }


def compare(
    joint: np.ndarray,
    num_classes: int,
    statistic: Statistic,
    rng: np.random.Generator,
    *,
    resamples: int,
    confidence: float,
) -> Comparison:
    """Paired comparison of a candidate with a champion.

    Args:
        joint: (m, 4) integers: truth, candidate's answer, champion's answer, number of such rows.
        num_classes: of the task; a class that nobody has or answers counts in macro F1 all the same.

    Raises:
        ValueError: no row at all.
    """
    if not len(joint):
        raise ValueError("nothing to compare")
    truth, candidate, champion, counts = joint.T

    def difference(draws: np.ndarray) -> np.ndarray:
        own, other = (_margins(draws, truth, answer, num_classes) for answer in (candidate, champion))
        return statistic(own) - statistic(other)

    draws = _drawn(counts, rng, resamples, width=2 * len(Margins._fields) * num_classes)
    differences = np.concatenate([difference(draw) for draw in draws])
    observed = difference(counts[None].astype(np.float64))
    alone = int(counts[(candidate == truth) & (champion != truth)].sum())
    other_alone = int(counts[(candidate != truth) & (champion == truth)].sum())
    return comparison(float(observed[0]), differences, alone, other_alone, confidence)


def comparison(
    observed: float, differences: np.ndarray, only_candidate: int, only_champion: int, confidence: float
) -> Comparison:
    """From the difference of two scores, the same over resamples (b,), and the rows that speak for one alone."""
    return Comparison(
        difference=percentiles(observed, differences, confidence),
        probability_better=float(np.mean(differences > 0) + np.mean(differences == 0) / 2),
        only_candidate_right=only_candidate,
        only_champion_right=only_champion,
        p_value=mcnemar(only_candidate, only_champion),
    )


def unseen(rows: int, confidence: float) -> float:
    """The largest share that something may have which happened in none of so many rows: the limit of Clopper and Pearson's
    interval (The use of confidence or fiducial limits, 1934)."""
    return float(1 - ((1 - confidence) / 2) ** (1 / rows))


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p-value that two models are right equally often, from the rows on which just one is right
    (McNemar 1947; the mid-p variant of Fagerland et al. 2013, whose level is closer to the nominal one)."""
    rows = only_first + only_second
    if not rows:
        return 1.0
    fewer = min(only_first, only_second)
    tail = 2 * stats.binom.cdf(fewer, rows, 0.5) - stats.binom.pmf(fewer, rows, 0.5)
    return float(min(1.0, tail))


def _otherwise(confusion: np.ndarray) -> np.ndarray:
    """The same rows of each class (k, k), right ones spread evenly over the other answers, wrong ones right."""
    size = len(confusion)
    right = np.diagonal(confusion)
    spread = (right[:, None] / (size - 1)) * (1 - np.eye(size))
    return spread + np.diag(confusion.sum(axis=1) - right)


def _resampled(confusion: np.ndarray, rng: np.random.Generator, resamples: int) -> Iterator[Margins]:
    """Margins (b, k) of resampled rows, in portions."""
    cells = np.flatnonzero(confusion)
    truth, answer = np.divmod(cells, confusion.shape[1])
    counts = confusion.ravel()[cells]
    for draw in _drawn(counts, rng, resamples, width=len(Margins._fields) * len(confusion)):
        yield _margins(draw, truth, answer, len(confusion))


def _drawn(counts: np.ndarray, rng: np.random.Generator, resamples: int, *, width: int) -> Iterator[np.ndarray]:
    """Multinomial draws (b, m) of as many rows as there are, in portions that fit into memory together with ``width``
    numbers made of each draw."""
    rows = int(counts.sum())
    if not rows:
        yield np.zeros((resamples, len(counts)))
        return
    portion = max(1, DRAWS_AT_A_TIME // (width + len(counts)))
    for start in range(0, resamples, portion):
        size = min(portion, resamples - start)
        yield rng.multinomial(rows, counts / rows, size=size).astype(np.float64)


def _margins(draws: np.ndarray, truth: np.ndarray, answer: np.ndarray, num_classes: int) -> Margins:
    """Counts (b, m) of cells, each of a truth and an answer (m,), added up by class."""
    right = truth == answer
    return Margins(
        _by_class(draws[:, right], truth[right], num_classes),
        _by_class(draws, truth, num_classes),
        _by_class(draws, answer, num_classes),
    )


def _by_class(draws: np.ndarray, classes: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts (b, m) of cells of ``classes`` (m,), added up, (b, num_classes)."""
    places = (classes, np.arange(len(classes)))
    belongs = sparse.csr_array((np.ones(len(classes)), places), shape=(num_classes, len(classes)))
    return (belongs @ draws.T).T


def percentiles(value: float, resampled: np.ndarray, confidence: float) -> Interval:
    """The interval that holds the middle ``confidence`` of scores over resamples (b,)."""
    outside = (1 - confidence) / 2
    low, high = np.quantile(resampled, [outside, 1 - outside])
    return Interval(value=value, low=float(low), high=float(high), confidence=confidence)


def share_percentiles(value: float, resampled: np.ndarray, rows: int, confidence: float) -> Interval:
    """The same of a mean over rows of numbers between 0 and 1. Where each row has the same extreme, resampling sees no
    variation: then the interval reaches to what so many rows cannot exclude (`unseen`)."""
    found = percentiles(value, resampled, confidence)
    share = unseen(rows, confidence)
    if found.low >= 1:
        return found.model_copy(update={"low": 1 - share})
    return found.model_copy(update={"high": share}) if found.low == found.high == 0 else found
