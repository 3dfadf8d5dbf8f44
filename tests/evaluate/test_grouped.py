"""The bootstrap over groups of rows, against the bootstrap over rows and against theory."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from modelyard.evaluate.grouped import NUM_GROUPS, GroupedSums, resample
from modelyard.evaluate.intervals import percentiles
from modelyard.evaluate.scores import (
    CLASSIFIER_STATISTICS,
    NUM_BINS,
    Calibration,
    classifier_sums,
    regression_statistics,
    regression_sums,
)
from modelyard.metrics import ClassificationMetrics, RegressionMetrics


def summed(quantities: np.ndarray, batch_rows: int = 1000) -> GroupedSums:
    """Rows counted in batches, (n, width)."""
    sums = GroupedSums(quantities.shape[1])
    for start in range(0, len(quantities), batch_rows):
        sums.add(quantities[start : start + batch_rows])
    return sums


def regression(num_rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Outputs and targets (n,) that differ by a fifth of the targets' deviation."""
    rng = np.random.default_rng(seed)
    targets = rng.normal(size=num_rows)
    return targets + rng.normal(scale=0.2, size=num_rows), targets


def test_scores_are_those_of_the_metrics():
    """R2, errors, loss and calibration from sums are what the streaming metrics say, in the target's units."""
    outputs, targets = regression(300)
    metric = RegressionMetrics(scale=7.0)
    metric.update(outputs, targets)
    total = regression_sums(outputs, targets).sum(axis=0, keepdims=True)
    found = {name: float(statistic(total)[0]) for name, statistic in regression_statistics(7.0).items()}
    assert found == pytest.approx(metric.compute())

    rng = np.random.default_rng(0)
    logits, classes = rng.normal(size=(300, 4)), rng.integers(0, 4, 300)
    counted, calibration = ClassificationMetrics(4), Calibration()
    counted.update(logits, classes)
    calibration.update(logits, classes)
    total = classifier_sums(logits, classes).sum(axis=0, keepdims=True)
    assert total.shape == (1, 2 + NUM_BINS)
    found = {name: float(statistic(total)[0]) for name, statistic in CLASSIFIER_STATISTICS.items()}
    assert found == pytest.approx({"loss": counted.compute()["loss"], "calibration_error": calibration.error})


def test_few_rows_are_resampled_one_by_one():
    """Below the number of groups it is the plain bootstrap: the interval of R2 is SciPy's."""
    outputs, targets = regression(120)
    (drawn,) = resample([summed(regression_sums(outputs, targets), 50)], np.random.default_rng(0), 4000)
    found = percentiles(0.0, regression_statistics(1.0)["r2"](drawn), 0.95)

    def r2(some: np.ndarray, truth: np.ndarray, axis: int = -1) -> np.ndarray:
        variation = ((truth - truth.mean(axis=axis, keepdims=True)) ** 2).sum(axis=axis)
        return 1 - ((some - truth) ** 2).sum(axis=axis) / variation

    peer = stats.bootstrap(
        (outputs, targets), r2, paired=True, vectorized=True, n_resamples=4000, method="percentile", rng=1
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx((peer.low, peer.high), abs=0.002)


def test_many_rows_vary_as_theory_says():
    """Ten rows a group: the width of the interval of a mean is that of the normal law, and memory is that of the groups."""
    rows = np.random.default_rng(0).normal(size=(10 * NUM_GROUPS, 1))
    sums = summed(np.column_stack([np.ones(len(rows)), rows]), 1777)
    assert sums.groups.shape == (NUM_GROUPS, 2)
    np.testing.assert_allclose(sums.total, [len(rows), rows.sum()])
    (drawn,) = resample([sums], np.random.default_rng(0), 2000)
    found = percentiles(0.0, drawn[:, 1] / drawn[:, 0], 0.95)
    assert found.high - found.low == pytest.approx(2 * 1.96 / np.sqrt(len(rows)), rel=0.06)


def test_two_models_are_resampled_alike():
    """A model against itself never differs, whatever is drawn."""
    outputs, targets = regression(500)
    same = [summed(regression_sums(outputs, targets), batch) for batch in (100, 333)]
    first, second = resample(same, np.random.default_rng(0), 200)
    np.testing.assert_allclose(first, second)


def test_nothing_cannot_be_resampled():
    """No row, no interval: an error and no invented number."""
    with pytest.raises(ValueError, match="nothing to resample"):
        resample([GroupedSums(2)], np.random.default_rng(0), 10)


@pytest.mark.soak
def test_the_interval_covers_the_truth():
    """Over 500 simulated data sets the 95 % interval of R2 holds the true one in 93 to 97 % of them."""
    truth, hits = 1 - 0.2**2, 0
    for seed in range(500):
        (drawn,) = resample([summed(regression_sums(*regression(6000, seed)))], np.random.default_rng(seed), 1000)
        found = percentiles(0.0, regression_statistics(1.0)["r2"](drawn), 0.95)
        hits += found.low <= truth <= found.high
    assert 0.93 <= hits / 500 <= 0.97
