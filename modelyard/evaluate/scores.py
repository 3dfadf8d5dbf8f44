"""What a confusion matrix does not tell: are the probabilities honest, how far off are numbers? Streaming, of fixed size."""

from __future__ import annotations

import numpy as np

from modelyard.evaluate.grouped import SumStatistic
from modelyard.metrics import negative_log_likelihood, softmax

NUM_BINS = 15  # of Guo et al. 2017, so that numbers can be compared
NUM_ERROR_SUMS = 5


class Calibration:
    """Confidence against accuracy, in bins of equal width (Guo et al., On Calibration of Modern Neural Networks, 2017).

    State: for each bin rows, rows right, and summed confidence; (3, NUM_BINS).
    """

    def __init__(self) -> None:
        self.state = np.zeros((3, NUM_BINS))

    def update(self, outputs: np.ndarray, targets: np.ndarray) -> None:
        """Count raw outputs (n, k) and class numbers (n,)."""
        confidence, right, bins = _binned(outputs, targets)
        for row, weights in enumerate((None, right, confidence)):
            self.state[row] += np.bincount(bins, weights, minlength=NUM_BINS)

    @property
    def error(self) -> float:
        """Expected calibration error: mean distance of confidence and accuracy, weighted by rows."""
        rows, right, confidence = self.state
        return float(np.abs(right - confidence).sum() / max(rows.sum(), 1))

    def curve(self) -> list[dict[str, float]]:
        """One point for each bin that has rows."""
        rows, right, confidence = self.state
        return [
            {"rows": int(count), "accuracy": float(hits / count), "confidence": float(total / count)}
            for count, hits, total in zip(rows, right, confidence, strict=True)
            if count
        ]


def classifier_sums(outputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """What `CLASSIFIER_STATISTICS` need of each row: 1, its loss in nats, and right minus confident in its bin.

    Args:
        outputs: (n, k) raw.
        targets: (n,) class numbers.

    Returns:
        (n, 2 + NUM_BINS).
    """
    confidence, right, bins = _binned(outputs, targets)
    sums = np.zeros((len(outputs), 2 + NUM_BINS))
    sums[:, 0] = 1
    sums[:, 1] = negative_log_likelihood(outputs, targets)
    sums[np.arange(len(outputs)), 2 + bins] = right - confidence
    return sums


def regression_sums(outputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """What `regression_statistics` need of each row: 1, |error|, error squared, target, target squared; (n, 5)."""
    truth = targets.astype(np.float64).reshape(-1)
    error = outputs.astype(np.float64).reshape(-1) - truth
    return np.column_stack([np.ones_like(truth), np.abs(error), error**2, truth, truth**2])


CLASSIFIER_STATISTICS: dict[str, SumStatistic] = {
    "loss": lambda sums: sums[:, 1] / sums[:, 0],
    "calibration_error": lambda sums: np.abs(sums[:, 2:]).sum(axis=1) / sums[:, 0],
}


def regression_statistics(scale: float) -> dict[str, SumStatistic]:
    """Scores by name, of sums (b, 5); ``scale`` brings errors to the target's own units."""
    return {
        "r2": _r2,
        "mae": lambda sums: sums[:, 1] / sums[:, 0] * scale,
        "rmse": lambda sums: np.sqrt(sums[:, 2] / sums[:, 0]) * scale,
        "loss": lambda sums: sums[:, 2] / sums[:, 0],
    }


def _r2(sums: np.ndarray) -> np.ndarray:
    """As `RegressionMetrics` has it: 0 where the drawn targets do not vary; NaN of errors that are NaN."""
    variation = sums[:, 4] - sums[:, 3] ** 2 / sums[:, 0]
    varies = variation > 1e-12 * np.maximum(sums[:, 4], 1e-300)
    found = np.where(varies, 1 - sums[:, 2] / np.where(varies, variation, 1.0), 0.0)
    return np.where(np.isfinite(sums[:, 2]), found, np.nan)


def _binned(outputs: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Confidence, whether right, and bin of each row; (n,) each."""
    probabilities = softmax(outputs.astype(np.float64))
    confidence = np.nan_to_num(probabilities.max(axis=1))
    bins = np.minimum((confidence * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    return confidence, probabilities.argmax(axis=1) == targets, bins
