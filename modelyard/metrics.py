"""Task metrics as streaming accumulators: fed batch by batch, merged across ranks, read at the end.

Training validates with them, compression and evaluation judge with them, so "accuracy" is one thing everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np

# Of every other metric more is better.
LOWER_IS_BETTER = frozenset({"loss", "train_loss", "mae", "rmse", "perplexity", "bits_per_byte"})


LARGEST_EXPONENT = 700.0  # beyond it a float64 is infinite


class Metric(Protocol):
    """An accumulator whose whole state is one float64 array; states of parts add up to the state of the whole."""

    state: np.ndarray

    def update(self, outputs: np.ndarray, targets: np.ndarray) -> None:
        """Count a batch: raw network outputs (n, k) and encoded targets (n,)."""
        ...

    def compute(self) -> dict[str, float]:
        """The named results over everything counted so far."""
        ...


class ClassificationMetrics:
    """Confusion matrix and cross-entropy of a classifier.

    The state is the flattened (k, k) confusion matrix (row: truth, column: prediction) and the summed negative
    log-likelihood in nats.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.state = np.zeros(num_classes * num_classes + 1)

    def update(self, outputs: np.ndarray, targets: np.ndarray) -> None:
        predicted = outputs.argmax(axis=1)
        cells = np.bincount(targets * self.num_classes + predicted, minlength=self.num_classes**2)
        self.state[:-1] += cells
        self.state[-1] += negative_log_likelihood(outputs, targets).sum()

    @property
    def confusion(self) -> np.ndarray:
        """(k, k) counts, row: truth, column: prediction."""
        return self.state[:-1].reshape(self.num_classes, self.num_classes).astype(np.int64)

    def compute(self) -> dict[str, float]:
        rows = max(int(self.confusion.sum()), 1)
        macro = self.per_class()["f1"].mean()
        return {
            "accuracy": float(np.trace(self.confusion)) / rows,
            "macro_f1": float(macro),
            "loss": float(self.state[-1]) / rows,
        }

    def per_class(self) -> dict[str, np.ndarray]:
        """Precision, recall, F1 and support per class; 0 where a ratio has no denominator, as scikit-learn has it."""
        confusion = self.confusion
        hits = np.diag(confusion).astype(np.float64)
        support, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
        return {
            "precision": hits / np.maximum(predicted, 1),
            "recall": hits / np.maximum(support, 1),
            "f1": 2 * hits / np.maximum(predicted + support, 1),
            "support": support,
        }


class RegressionMetrics:
    """Errors of a predictor of one number.

    The state is the number of rows and the sums of absolute error, squared error, target and squared target, all in
    the network's units; ``scale`` brings ``mae`` and ``rmse`` back to the target's own.
    """

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale
        self.state = np.zeros(5)

    def update(self, outputs: np.ndarray, targets: np.ndarray) -> None:
        wide, truth = outputs.astype(np.float64).reshape(-1), targets.astype(np.float64).reshape(-1)
        error = wide - truth
        self.state += [len(truth), np.abs(error).sum(), (error**2).sum(), truth.sum(), (truth**2).sum()]

    def compute(self) -> dict[str, float]:
        """``r2`` is the share of the target's variance that is explained: 0 where the target does not vary, as for
        scikit-learn; ``loss`` is the mean squared error in the network's units."""
        rows, absolute, squared, total, total_squared = self.state.tolist()
        rows = max(rows, 1.0)
        variation = total_squared - total**2 / rows
        return {
            "r2": 1.0 - squared / variation if variation > 0 else float(squared == 0 and self.state[0] > 0),
            "mae": absolute / rows * self.scale,
            "rmse": float(np.sqrt(squared / rows)) * self.scale,
            "loss": squared / rows,
        }


class LanguageMetrics:
    """How well the next token of a text is foretold.

    The state is the negative log-likelihood in nats, the tokens, and the bytes of text that they stand for, each summed
    over all tokens that were to be foretold.

    Args:
        token_bytes: bytes that each token stands for.
    """

    def __init__(self, token_bytes: Sequence[int]) -> None:
        self._token_bytes = np.asarray(token_bytes, dtype=np.float64)
        self.state = np.zeros(3)

    def update(self, outputs: np.ndarray, targets: np.ndarray) -> None:
        """Count a batch: raw scores (n, t, vocabulary), or their negative log-likelihoods (n, t) where somebody has them
        already; targets (n, t), below 0 where nothing follows."""
        follows = targets >= 0
        truth = targets[follows]
        lost = outputs[follows] if outputs.ndim == targets.ndim else negative_log_likelihood(outputs[follows], truth)
        self.state += [lost.sum(dtype=np.float64), len(truth), self._token_bytes[truth].sum()]

    def compute(self) -> dict[str, float]:
        """``loss`` in nats a token, ``perplexity`` its exponential; ``bits_per_byte`` also compares models whose tokens
        differ."""
        lost, tokens, num_bytes = self.state.tolist()
        loss = lost / max(tokens, 1.0)
        return {
            "bits_per_byte": lost / math.log(2) / max(num_bytes, 1.0),
            "perplexity": math.exp(min(loss, LARGEST_EXPONENT)),
            "loss": loss,
        }


class MaskedMetrics:
    """How well hidden tokens of a text are foretold. The state is their negative log-likelihood in nats, and how many they
    are."""

    def __init__(self) -> None:
        self.state = np.zeros(2)

    def update(self, outputs: np.ndarray, targets: np.ndarray) -> None:
        """Count a batch: raw scores (n, t, vocabulary), or their negative log-likelihoods (n, t); targets (n, t), below 0
        where nothing was hidden."""
        hidden = targets >= 0
        truth = targets[hidden]
        lost = outputs[hidden] if outputs.ndim == targets.ndim else negative_log_likelihood(outputs[hidden], truth)
        self.state += [lost.sum(dtype=np.float64), len(truth)]

    def compute(self) -> dict[str, float]:
        """``loss``: cross-entropy in nats a hidden token; ``perplexity``: its exponential."""
        lost, tokens = self.state.tolist()
        loss = lost / max(tokens, 1.0)
        return {"perplexity": math.exp(min(loss, LARGEST_EXPONENT)), "loss": loss}


def softmax(outputs: np.ndarray) -> np.ndarray:
    """Probabilities along the last axis, from raw outputs."""
    shifted = np.exp(outputs - outputs.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def negative_log_likelihood(outputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Cross-entropy per row, in nats: outputs (n, k) raw, targets (n,) class numbers."""
    wide = outputs.astype(np.float64)
    top = wide.max(axis=1)
    log_total = top + np.log(np.exp(wide - top[:, None]).sum(axis=1))
    return log_total - wide[np.arange(len(targets)), targets]
