"""Entities found in texts, counted: an entity is right if its first token, its last one and its label are.

The exact match of the shared tasks on entities (Tjong Kim Sang and De Meulder 2003, CoNLL-2003), as conlleval counts it;
in words of seqeval: its default mode.
"""

from __future__ import annotations

import numpy as np

from modelyard.metrics import negative_log_likelihood
from modelyard.token_labels import NO_TAG, Chunks, chunks

NUM_TOKEN_SUMS = 3  # behind those of entities: tokens whose tag is right, tokens, and their loss in nats


class SpanMetrics:
    """Precision, recall and F1 of entities.

    The state is, for each label, how many entities were found rightly, found, and there; then `NUM_TOKEN_SUMS`.
    """

    def __init__(self, num_labels: int) -> None:
        self.num_labels = num_labels
        self.state = np.zeros(3 * num_labels + NUM_TOKEN_SUMS)

    def update(self, outputs: np.ndarray, targets: np.ndarray) -> None:
        """Count a batch: raw outputs (n, t, k), tags (n, t), `NO_TAG` where a token carries none."""
        self.state += span_sums(outputs, targets, self.num_labels).sum(axis=0)

    def compute(self) -> dict[str, float]:
        """``span_*`` over all entities, ``macro_span_f1`` the mean over labels, ``loss`` in nats a tag."""
        return {name: float(value[0]) for name, value in scores_of_sums(self.state[None], self.num_labels).items()}

    def per_label(self) -> dict[str, np.ndarray]:
        """Precision, recall, F1 and how many there are, by label; 0 where a ratio has no denominator."""
        right, found, there = self.state[: 3 * self.num_labels].reshape(self.num_labels, 3).T
        return {
            "precision": right / np.maximum(found, 1),
            "recall": right / np.maximum(there, 1),
            "f1": 2 * right / np.maximum(found + there, 1),
            "support": there,
        }


def scores_of_sums(sums: np.ndarray, num_labels: int) -> dict[str, np.ndarray]:
    """Every score of sums (b, width) as `span_sums` gives them, (b,) each."""
    counts = sums[:, : 3 * num_labels].reshape(len(sums), num_labels, 3)
    right, found, there = np.moveaxis(counts.sum(axis=1), 1, 0)
    tags_right, tags, nats = sums[:, 3 * num_labels :].T
    by_label = 2 * counts[..., 0] / np.maximum(counts[..., 1] + counts[..., 2], 1)
    return {
        "span_f1": 2 * right / np.maximum(found + there, 1),
        "span_precision": right / np.maximum(found, 1),
        "span_recall": right / np.maximum(there, 1),
        "macro_span_f1": by_label.mean(axis=1) if num_labels else np.zeros(len(sums)),
        "token_accuracy": tags_right / np.maximum(tags, 1),
        "loss": nats / np.maximum(tags, 1),
    }


def span_sums(outputs: np.ndarray, targets: np.ndarray, num_labels: int) -> np.ndarray:
    """What scores are made of, for each row (n, 3 * labels + `NUM_TOKEN_SUMS`).

    Args:
        outputs: (n, t, k) raw.
        targets: (n, s) tags; where s is less than t, what is behind carries none.
    """
    targets = widened(targets, outputs.shape[1])
    here = targets != NO_TAG
    answers = np.where(here, outputs.argmax(axis=2), NO_TAG)
    sums = np.zeros((len(outputs), 3 * num_labels + NUM_TOKEN_SUMS))
    there, found = chunks(targets), chunks(answers)
    right = np.isin(_keys(found, targets.shape[1], num_labels), _keys(there, targets.shape[1], num_labels))
    for place, (which, weights) in enumerate([(found, right), (found, None), (there, None)]):
        cells = np.bincount(which.row * num_labels + which.label, weights, minlength=len(outputs) * num_labels)
        sums[:, place : 3 * num_labels : 3] = cells.reshape(len(outputs), num_labels)
    rows, _ = np.nonzero(here)
    lost = negative_log_likelihood(outputs[here], targets[here])
    sums[:, -3] = ((answers == targets) & here).sum(axis=1)
    sums[:, -2] = here.sum(axis=1)
    sums[:, -1] = np.bincount(rows, lost, minlength=len(outputs))
    return sums


def widened(targets: np.ndarray, width: int) -> np.ndarray:
    """Tags (n, s) as (n, width), none behind."""
    return np.pad(targets, ((0, 0), (0, max(0, width - targets.shape[1]))), constant_values=NO_TAG)[:, :width]


def _keys(found: Chunks, width: int, num_labels: int) -> np.ndarray:
    """A number for each entity, the same for the same one."""
    return ((found.row * width + found.first) * width + found.last) * max(num_labels, 1) + found.label
