"""Calibration, against what others compute from all rows at once."""

from __future__ import annotations

import numpy as np
import pytest

from modelyard.evaluate.scores import NUM_BINS, Calibration
from modelyard.metrics import softmax


def test_calibration_error_is_the_mean_distance(outputs: tuple[np.ndarray, np.ndarray]):
    """Bin by bin, as the paper defines it; batches add up."""
    raw, truth = outputs
    calibration = Calibration()
    for part in np.array_split(np.arange(3000), 5):
        calibration.update(raw[part], truth[part])
    probabilities = softmax(raw.astype(np.float64))
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == truth
    expected = 0.0
    for low in np.arange(NUM_BINS) / NUM_BINS:
        mine = (confidence >= low) & (confidence < low + 1 / NUM_BINS)
        if mine.any():
            expected += mine.mean() * abs(right[mine].mean() - confidence[mine].mean())
    assert calibration.error == pytest.approx(expected, abs=1e-9)
    assert sum(point["rows"] for point in calibration.curve()) == 3000


def test_an_honest_model_is_calibrated():
    """Labels drawn from the model's own probabilities leave an error near zero, an overconfident one does not."""
    rng = np.random.default_rng(2)
    raw = rng.normal(size=(20_000, 3))
    drawn = (softmax(raw).cumsum(axis=1) > rng.random((20_000, 1))).argmax(axis=1)
    honest, boastful = Calibration(), Calibration()
    honest.update(raw, drawn)
    boastful.update(4 * raw, drawn)
    assert honest.error < 0.02
    assert boastful.error > 0.2
