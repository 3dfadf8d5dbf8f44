"""What a confusion matrix does not tell: are the probabilities honest, and do they rank? Streaming, of fixed size."""

from __future__ import annotations

import numpy as np

from modelyard.metrics import softmax

NUM_BINS = 15  # of Guo et al. 2017, so that numbers can be compared
NUM_RANKS = 4096
MAX_RANKED_CLASSES = 200  # one pass over the batch for each class


class Calibration:
    """Confidence against accuracy, in bins of equal width (Guo et al., On Calibration of Modern Neural Networks, 2017).

    State: for each bin rows, rows right, and summed confidence; (3, NUM_BINS).
    """

    def __init__(self) -> None:
        self.state = np.zeros((3, NUM_BINS))

    def update(self, outputs: np.ndarray, targets: np.ndarray) -> None:
        """Count raw outputs (n, k) and class numbers (n,)."""
        probabilities = softmax(outputs.astype(np.float64))
        confidence = np.nan_to_num(probabilities.max(axis=1))
        right = probabilities.argmax(axis=1) == targets
        bins = np.minimum((confidence * NUM_BINS).astype(np.int64), NUM_BINS - 1)
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


class Ranking:
    """Area under the ROC curve, one class against the rest, mean over the classes that have rows of both kinds.

    Scores are counted in `NUM_RANKS` bins of the probability, equal ones counting half, so the area is exact up to
    pairs that fall into one bin. State: (2, k, NUM_RANKS), row 1: rows of the class.
    """

    def __init__(self, num_classes: int) -> None:
        self.state = np.zeros((2, num_classes, NUM_RANKS), dtype=np.int64)

    def update(self, outputs: np.ndarray, targets: np.ndarray) -> None:
        """Count raw outputs (n, k) and class numbers (n,)."""
        if self.state.shape[1] > MAX_RANKED_CLASSES:
            return
        probabilities = np.nan_to_num(softmax(outputs.astype(np.float64)))
        ranks = np.minimum((probabilities * NUM_RANKS).astype(np.int64), NUM_RANKS - 1)
        for number in range(self.state.shape[1]):
            is_class = targets == number
            self.state[1, number] += np.bincount(ranks[is_class, number], minlength=NUM_RANKS)
            self.state[0, number] += np.bincount(ranks[~is_class, number], minlength=NUM_RANKS)

    @property
    def area(self) -> float:
        """NaN where no class has rows of both kinds, or there are more than `MAX_RANKED_CLASSES` classes."""
        others, own = self.state.astype(np.float64)
        below = np.cumsum(others, axis=1) - others
        pairs = own.sum(axis=1) * others.sum(axis=1)
        won = (own * (below + others / 2)).sum(axis=1)
        usable = pairs > 0
        return float((won[usable] / pairs[usable]).mean()) if usable.any() else float("nan")
