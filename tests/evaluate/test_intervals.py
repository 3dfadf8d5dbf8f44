"""Intervals that keep what they promise, and a comparison that raises no false alarm."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score

from modelyard.evaluate.intervals import (
    STATISTICS,
    Margins,
    accuracy,
    compare,
    interval,
    intervals,
    macro_f1,
    mcnemar,
    share_percentiles,
)
from modelyard.evaluate.pairs import Pairs

OPTIONS = {"resamples": 1000, "confidence": 0.95}


def confusion_of(truth: np.ndarray, answer: np.ndarray, num_classes: int) -> np.ndarray:
    return np.bincount(truth * num_classes + answer, minlength=num_classes**2).reshape(num_classes, num_classes)


def answers(rng: np.random.Generator, truth: np.ndarray, right: float, num_classes: int) -> np.ndarray:
    """Right with that probability, else any other class."""
    wrong = (truth + rng.integers(1, num_classes, len(truth))) % num_classes
    return np.where(rng.random(len(truth)) < right, truth, wrong)


@pytest.mark.parametrize(("metric", "rows"), [("accuracy", 800), ("macro_f1", 800)])
def test_the_interval_covers_the_truth_as_often_as_it_says(metric: str, rows: int):
    """Over 500 simulated data sets the 95 % interval holds the true score in 93 to 97 % of them."""
    rng, covered, num_classes = np.random.default_rng(7), 0, 3
    # A large sample stands for the truth.
    many = rng.integers(0, num_classes, 2_000_000)
    whole = confusion_of(many, answers(rng, many, 0.85, num_classes), num_classes)
    true = float(STATISTICS[metric](Margins.of(whole)))
    for _ in range(500):
        truth = rng.integers(0, num_classes, rows)
        confusion = confusion_of(truth, answers(rng, truth, 0.85, num_classes), num_classes)
        found = interval(confusion, STATISTICS[metric], rng, **OPTIONS)
        covered += found.low <= true <= found.high
    assert 0.93 <= covered / 500 <= 0.97


@pytest.mark.parametrize("is_right", [True, False])
def test_few_rows_without_an_error_are_no_certainty(is_right: bool):
    """All of 20 rows right: the true accuracy may still be 0.83, Clopper and Pearson's limit; all wrong: the other way."""
    confusion = np.diag([10, 10]) if is_right else np.array([[0, 10], [10, 0]])
    found = interval(confusion, accuracy, np.random.default_rng(1), **OPTIONS)
    limit = stats.binomtest(20 if is_right else 0, 20).proportion_ci(0.95, "exact")
    assert (found.low, found.high) == pytest.approx((limit.low, limit.high))
    mean = interval(confusion, macro_f1, np.random.default_rng(1), **OPTIONS)
    assert mean.high - mean.low > 0.1


def test_a_perfect_recall_of_few_queries_is_no_certainty():
    """Ten of ten found, or none: the other end is Clopper and Pearson's; between the extremes nothing changes."""
    for value, limit in ((1.0, (0.025**0.1, 1)), (0.0, (0, 1 - 0.025**0.1)), (0.5, (0.5, 0.5))):
        found = share_percentiles(value, np.full(100, value), 10, 0.95)
        assert (found.low, found.high) == pytest.approx(limit)


def test_counts_are_resampled_as_rows_would_be():
    """The bootstrap over counts gives the interval of the plain one over rows, scored by scikit-learn."""
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 3, 150)
    answer = answers(rng, truth, 0.8, 3)
    chosen = rng.integers(0, 150, (600, 150))
    plain = [f1_score(truth[rows], answer[rows], average="macro", labels=[0, 1, 2]) for rows in chosen]
    found = interval(confusion_of(truth, answer, 3), macro_f1, rng, resamples=10_000, confidence=0.95)
    np.testing.assert_allclose([found.low, found.high], np.quantile(plain, [0.025, 0.975]), atol=0.012)
    assert found.value == pytest.approx(f1_score(truth, answer, average="macro"))


def test_equal_models_are_seldom_called_different():
    """At level 0.05 the paired test is wrong in 4 to 6 % of 2,000 pairs of equally good models."""
    rng, alarms = np.random.default_rng(3), 0
    for _ in range(2000):
        right = rng.random((2, 600)) < 0.9
        alarms += mcnemar(int((right[0] & ~right[1]).sum()), int((~right[0] & right[1]).sum())) < 0.05
    assert 0.04 <= alarms / 2000 <= 0.06


def test_a_better_model_is_said_to_be_better():
    """The difference, its interval and the probability agree with what was built in; a tie is even."""
    rng = np.random.default_rng(5)
    truth = rng.integers(0, 4, 2000)
    weak, good = answers(rng, truth, 0.8, 4), answers(rng, truth, 0.85, 4)
    pairs = Pairs()
    for part in np.array_split(np.arange(2000), 7):
        pairs.update(truth[part], good[part], weak[part])
    found = compare(pairs.joint, 4, accuracy, rng, **OPTIONS)
    assert found.difference.value == pytest.approx((good == truth).mean() - (weak == truth).mean())
    assert 0 < found.difference.low < found.difference.value < found.difference.high
    assert found.probability_better > 0.99
    assert found.p_value < 0.01
    assert found.only_candidate_right - found.only_champion_right == round(found.difference.value * 2000)
    same = Pairs()
    same.update(truth, good, good)
    tie = compare(same.joint, 4, accuracy, rng, **OPTIONS)
    assert (tie.difference.value, tie.probability_better, tie.p_value) == (0.0, 0.5, 1.0)


def test_a_class_that_nobody_has_counts_in_the_comparison():
    """The difference of macro F1 is that of the two scores as they are reported, over all classes of the task."""
    rng = np.random.default_rng(6)
    truth = rng.integers(0, 3, 900)
    weak, good = answers(rng, truth, 0.7, 3), answers(rng, truth, 0.9, 3)
    pairs = Pairs()
    pairs.update(truth, good, weak)
    found = compare(pairs.joint, 5, macro_f1, rng, **OPTIONS)
    reported = [float(macro_f1(Margins.of(confusion_of(truth, one, 5)))) for one in (good, weak)]
    assert found.difference.value == pytest.approx(reported[0] - reported[1])


def test_a_thousand_classes_are_resampled_within_bounds():
    """A thousand matrices of a million cells would take 8 GB; class by class, a portion at a time, it is a hundredth."""
    rng = np.random.default_rng(8)
    truth = rng.integers(0, 1000, 5000)
    confusion = confusion_of(truth, answers(rng, truth, 0.8, 1000), 1000)
    tracemalloc.start()
    found = intervals(confusion, STATISTICS, rng, **OPTIONS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 400e6
    assert found["accuracy"].low < 0.8 < found["accuracy"].high
    assert found["macro_f1"].value == pytest.approx(float(macro_f1(Margins.of(confusion))))


@pytest.mark.parametrize(("first", "second"), [(0, 0), (3, 0), (12, 5), (40, 40)])
def test_mcnemar_lies_below_the_exact_test(first: int, second: int):
    """The mid-p value is the exact binomial one less half the probability of what was seen, on both sides."""
    exact = stats.binomtest(min(first, second), first + second, 0.5).pvalue if first + second else 1.0
    assert 0 < mcnemar(first, second) <= exact + 1e-12


def test_nothing_to_compare_is_said():
    """No row, no statement."""
    with pytest.raises(ValueError, match="nothing"):
        compare(Pairs().joint, 4, accuracy, np.random.default_rng(0), **OPTIONS)
