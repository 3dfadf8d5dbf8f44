"""Scores of vectors of texts, against scikit-learn and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import ndcg_score, top_k_accuracy_score

from modelyard.evaluate.vectors import agreement, partner_ranks, resampled, scores_of
from modelyard.likeness import cosines

OPTIONS = {"resamples": 400, "confidence": 0.95, "seed": 0}


def near(num_rows: int, noise: float, width: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    texts = rng.normal(size=(num_rows, width))
    return texts, texts + noise * rng.normal(size=(num_rows, width))


def test_retrieval_is_what_scikit_learn_counts():
    """Recall and NDCG over all partners; the reciprocal rank from the ranks themselves; each lies in its interval."""
    texts, partners = near(60, 1.2)
    similarity = np.stack([cosines(np.repeat(text[None], 60, 0), partners) for text in texts])
    found = scores_of(texts, partners, None, **OPTIONS)
    truth = np.arange(60)
    assert found["recall_at_1"].value == pytest.approx(top_k_accuracy_score(truth, similarity, k=1, labels=truth))
    assert found["recall_at_10"].value == pytest.approx(top_k_accuracy_score(truth, similarity, k=10, labels=truth))
    assert found["ndcg_at_10"].value == pytest.approx(ndcg_score(np.eye(60), similarity, k=10))
    assert found["mrr"].value == pytest.approx(np.mean(1 / (partner_ranks(texts, partners) + 1)))
    assert all(one.low < one.value < one.high for one in found.values())
    assert 0.1 < found["recall_at_1"].value < 0.9


def test_the_same_partner_twice_is_no_mistake():
    """Texts that belong to one answer find it, whichever of its copies comes first."""
    texts, _ = near(5, 0.0)
    twice = np.concatenate([texts, texts])
    assert partner_ranks(twice, twice).tolist() == [0] * 10


def test_correlations_are_scipys():
    """By rank and by value, with intervals; NaN where people said one thing throughout."""
    texts, partners = near(80, 0.8)
    said = np.round(cosines(texts, partners) + 0.3 * np.random.default_rng(0).normal(size=80), 1)
    found = scores_of(texts, partners, said, **OPTIONS)
    assert found["spearman"].value == pytest.approx(spearmanr(cosines(texts, partners), said).statistic)
    assert found["pearson"].value == pytest.approx(pearsonr(cosines(texts, partners), said).statistic)
    assert found["spearman"].low < found["spearman"].value < found["spearman"].high
    assert np.isnan(scores_of(texts, partners, np.ones(80), **OPTIONS)["spearman"].value)


def test_agreement_is_an_angle_not_a_length():
    """Vectors twice as long agree wholly; one that was turned round shows as the smallest."""
    texts, _ = near(4, 0.0)
    turned = texts * 2
    turned[2] *= -1
    found = agreement(turned, texts)
    assert found["smallest_cosine_to_float"] == pytest.approx(-1)
    assert found["cosine_to_float"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("metric", "has_likeness"), [("recall_at_10", False), ("ndcg_at_10", False), ("spearman", True)]
)
def test_two_models_are_compared_on_the_same_draws(metric: str, has_likeness: bool):
    """The interval of the difference is that of the same rows drawn for both, narrower than their own; better vectors are
    better with a probability, the same ones with one half."""
    texts, good = near(80, 0.9)
    bad = good + 1.5 * np.random.default_rng(9).normal(size=good.shape)
    said = cosines(texts, near(80, 0.0)[1] + 0.5 * np.random.default_rng(0).normal(size=texts.shape))
    likeness = cosines(texts, good) + 0.1 * said if has_likeness else None
    one, other = (resampled(texts, partners, likeness, resamples=400, seed=0) for partners in (good, bad))
    found = one.against(other, metric, 0.95)
    assert found.difference.value == pytest.approx(one.values[metric] - other.values[metric])
    assert found.difference.low == pytest.approx(np.quantile(one.drawn[metric] - other.drawn[metric], 0.025))
    assert found.probability_better > 0.99
    assert found.only_candidate_right > found.only_champion_right
    assert other.against(one, metric, 0.95).probability_better < 0.01
    same = one.against(one, metric, 0.95)
    assert (same.probability_better, same.difference.low, same.p_value) == (0.5, 0.0, 1.0)


def test_what_has_no_correlation_is_compared_with_nothing():
    """Likenesses that do not vary: no number, so that a bound on it refuses."""
    texts, partners = near(20, 0.5)
    one = resampled(texts, partners, np.ones(20), resamples=200, seed=0)
    assert one.against(one, "spearman", 0.95) is None
