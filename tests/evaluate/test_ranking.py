"""The area under the ROC curve and its interval, against what others compute from all rows at once."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from modelyard.evaluate.ranking import MAX_RANKED_CLASSES, Ranking
from modelyard.metrics import softmax


def _counted(raw: np.ndarray, truth: np.ndarray, parts: int = 5) -> Ranking:
    ranking = Ranking(raw.shape[1])
    for part in np.array_split(np.arange(len(truth)), parts):
        ranking.update(raw[part], truth[part])
    return ranking


def _two_classes(rng: np.random.Generator, rows: int, distance: float) -> tuple[np.ndarray, np.ndarray]:
    """Scores of two classes, normal with unit variance, whose means lie ``distance`` apart."""
    truth = rng.integers(0, 2, rows)
    score = rng.normal(size=rows) + distance * truth
    return np.stack([np.zeros(rows), score], axis=1), truth


def test_area_is_that_of_scikit_learn(outputs: tuple[np.ndarray, np.ndarray]):
    """Counted in batches, one class against the rest, to three decimals."""
    raw, truth = outputs
    expected = roc_auc_score(truth, softmax(raw.astype(np.float64)), multi_class="ovr", average="macro")
    assert _counted(raw, truth).area == pytest.approx(expected, abs=1e-3)


def test_interval_is_that_of_rows_drawn_again(outputs: tuple[np.ndarray, np.ndarray]):
    """Its ends lie where those of scikit-learn's area over resampled rows lie, to a tenth of the width."""
    raw, truth = outputs
    probabilities, rng = softmax(raw.astype(np.float64)), np.random.default_rng(1)
    drawn = [rng.integers(0, len(truth), len(truth)) for _ in range(300)]
    areas = [roc_auc_score(truth[rows], probabilities[rows], multi_class="ovr", average="macro") for rows in drawn]
    low, high = np.quantile(areas, [0.025, 0.975])
    found = _counted(raw, truth).interval(np.random.default_rng(2), resamples=4000, confidence=0.95)
    assert found is not None
    assert found.low < found.value < found.high
    assert found.low == pytest.approx(low, abs=(high - low) / 7)
    assert found.high == pytest.approx(high, abs=(high - low) / 7)


def test_batches_do_not_matter(outputs: tuple[np.ndarray, np.ndarray]):
    """Rows that come in other portions give the same interval."""
    found = [
        _counted(*outputs, parts=parts).interval(np.random.default_rng(2), resamples=200, confidence=0.9)
        for parts in (1, 7)
    ]
    assert found[0] == found[1]


def test_area_of_one_class_is_unknown():
    """Without rows of both kinds there is nothing to rank, and no interval."""
    ranking = _counted(np.zeros((5, 2)), np.zeros(5, dtype=np.int64), parts=1)
    assert np.isnan(ranking.area)
    assert ranking.interval(np.random.default_rng(0), resamples=100, confidence=0.95) is None


def test_interval_of_a_single_row_is_not_claimed():
    """A class with one row has an area, but nothing tells how sure it is: no interval, rather than a narrow one."""
    ranking = _counted(np.array([[0.0, 1.0], [1.0, 0.0], [2.0, 0.0]]), np.array([1, 0, 0]), parts=1)
    assert ranking.area == 1.0
    assert ranking.interval(np.random.default_rng(0), resamples=100, confidence=0.95) is None


def test_a_perfect_order_of_few_rows_is_no_certainty():
    """20 rows of one class, 30 of another, all ranked rightly: the area may be as low as what 20 pairs cannot exclude."""
    ranking = Ranking(2)
    targets = np.repeat([0, 1], [20, 30])
    ranking.update(np.column_stack([-5.0 * targets, 5.0 * targets]), targets)
    found = ranking.interval(np.random.default_rng(0), resamples=1000, confidence=0.95)
    assert found is not None
    assert (found.value, found.high) == (1, 1)
    assert found.low == pytest.approx(0.025 ** (1 / 20))


def test_many_classes_are_not_ranked():
    """Beyond the limit there is neither area nor interval, and rows are taken all the same."""
    num_classes = MAX_RANKED_CLASSES + 1
    ranking = _counted(np.zeros((3, num_classes)), np.arange(3), parts=1)
    assert np.isnan(ranking.area)
    assert ranking.interval(np.random.default_rng(0), resamples=100, confidence=0.95) is None


def test_a_shifted_copy_ranks_alike():
    """Scores near 0 and 1 are told apart: a model made more sure of everything keeps its interval's width."""
    raw, truth = _two_classes(np.random.default_rng(3), 5000, 2.0)
    widths = []
    for shift in (0.0, 6.0):
        moved = raw + np.array([0.0, shift])
        found = _counted(moved, truth).interval(np.random.default_rng(4), resamples=2000, confidence=0.95)
        assert found is not None
        widths.append(found.high - found.low)
    assert widths[1] == pytest.approx(widths[0], rel=0.1)


@pytest.mark.soak
@pytest.mark.parametrize(("rows", "distance"), [(400, 1.0), (3000, 1.0), (3000, 2.0)])
def test_interval_covers_the_truth(rows: int, distance: float):
    """Over 500 simulated data sets the 95 % interval holds the true area, Phi(d / sqrt 2), in 93 to 97 %."""
    rng, truth = np.random.default_rng(5), norm.cdf(distance / np.sqrt(2))
    held = 0
    for _ in range(500):
        found = _counted(*_two_classes(rng, rows, distance), parts=1).interval(rng, resamples=1000, confidence=0.95)
        assert found is not None
        held += found.low <= truth <= found.high
    assert 0.93 <= held / 500 <= 0.97
