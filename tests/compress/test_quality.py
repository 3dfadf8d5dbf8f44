"""Drops and their bounds."""

from __future__ import annotations

import numpy as np
import pytest

from modelyard.compress.check import agreeing
from modelyard.compress.quality import PairedBlocks, paired_difference_bound
from modelyard.metrics import ClassificationMetrics, RegressionMetrics
from modelyard.span_metrics import SpanMetrics
from modelyard.token_labels import NO_TAG


def test_no_difference_is_no_proof_of_none():
    """Where two models answer alike on n rows, the bound is z^2 / (n + z^2): close to the rule of three."""
    assert paired_difference_bound(0, 0, 270, 0.95) == pytest.approx(1.6449**2 / (270 + 1.6449**2), rel=1e-3)
    assert paired_difference_bound(0, 0, 0, 0.95) == 1.0
    assert paired_difference_bound(5, 0, 5, 0.95) == 1.0


def test_the_bound_covers_the_truth_as_often_as_it_says():
    """Over simulated pairs of models whose true difference is 2 %, a 90 % bound lies above it in about 90 %."""
    rng, truth = np.random.default_rng(0), 0.02
    draws = rng.multinomial(400, [0.05, 0.03, 0.92], size=400)
    covered = np.mean([paired_difference_bound(b, c, 400, 0.9) >= truth for b, c, _ in draws])
    assert 0.86 <= covered <= 0.95


def test_drops_are_differences_of_the_metrics():
    """Whichever way is better, above 0 is worse; blocks add up to the whole."""
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 3, 900)
    good = np.eye(3, dtype=np.float32)[targets] * 4 + rng.normal(size=(900, 3)).astype(np.float32)
    worse = good + 2 * rng.normal(size=(900, 3)).astype(np.float32)
    blocks = PairedBlocks(lambda: ClassificationMetrics(3), 900)
    for part in np.array_split(np.arange(900), 4):
        blocks.update(good[part], worse[part], targets[part])
    drops = blocks.drops(0.95)
    assert drops["accuracy"].drop == pytest.approx(
        (good.argmax(axis=1) == targets).mean() - (worse.argmax(axis=1) == targets).mean()
    )
    assert set(drops) == {"accuracy", "macro_f1", "loss"}
    for drop in drops.values():
        assert 0 < drop.drop < drop.bound < drop.drop + 0.5


def test_the_bootstrap_of_a_regression_is_paired():
    """Errors that both models share do not widen the bound."""
    rng = np.random.default_rng(1)
    targets = rng.normal(size=500).astype(np.float32)
    noise = rng.normal(size=500).astype(np.float32)
    blocks = PairedBlocks(RegressionMetrics, 500)
    blocks.update((targets + noise)[:, None], (targets + noise + 0.001)[:, None], targets)
    drop = blocks.drops(0.95)["rmse"]
    assert abs(drop.bound - drop.drop) < 0.001


def test_answers_of_tokens_have_drops_too():
    """Those of whole entities; a text of which one token is answered otherwise does not agree."""
    rng = np.random.default_rng(2)
    targets = rng.integers(0, 5, (200, 6))
    targets[:, 0] = NO_TAG
    good = np.eye(5, dtype=np.float32)[np.maximum(targets, 0)] * 4 + rng.normal(size=(200, 6, 5)).astype(np.float32)
    worse = good + 2 * rng.normal(size=good.shape).astype(np.float32)
    blocks = PairedBlocks(lambda: SpanMetrics(2), 200)
    blocks.update(good, worse, targets)
    drop = blocks.drops(0.95)["span_f1"]
    assert 0 < drop.drop < drop.bound < 1
    whole, other = SpanMetrics(2), SpanMetrics(2)
    whole.update(good, targets)
    other.update(worse, targets)
    assert drop.drop == pytest.approx(whole.compute()["span_f1"] - other.compute()["span_f1"])
    changed = good[:2].copy()
    changed[0, 3] = -changed[0, 3]
    assert agreeing(good[:2], changed).tolist() == [False, True]
