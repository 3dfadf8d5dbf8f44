"""Entities of texts: what tags of tokens mean to whoever sent the text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from modelyard.token_labels import Place, chunks, labels_of, places

if TYPE_CHECKING:
    from modelyard.transform import TextTransform

ENTITIES = "entities"  # the answer of a model for token classification


def entities_of(
    transform: TextTransform,
    tags: Sequence[str | int],
    texts: Sequence[str],
    answers: np.ndarray,
    probabilities: np.ndarray,
) -> list[list[dict[str, Any]]]:
    """The entities of each text, in their order.

    Args:
        tags: the classes of the target.
        answers: number of the likeliest tag of each token (n, t), as `transform.tokens` tells texts into tokens.
        probabilities: of those, (n, t).

    Returns:
        ``start``, ``end`` (characters; the end is the first one behind), ``label``, ``score`` (the mean probability of its
        tags) and ``text`` of each.
    """
    labels = labels_of(tags)
    return [
        _of_text(text, places(encoding, text, transform.subwords), labels, answer, probability)
        for text, encoding, answer, probability in zip(
            texts, transform.encodings(texts), answers, probabilities, strict=True
        )
    ]


def _of_text(
    text: str, where: Sequence[Place], labels: Sequence[str], answers: np.ndarray, probabilities: np.ndarray
) -> list[dict[str, Any]]:
    if not where:
        return []
    tokens = [place.token for place in where]
    said, sure = answers[None, tokens].astype(np.int64), probabilities[tokens]
    found = chunks(said)
    return [
        {
            "start": where[first].start,
            "end": where[last].end,
            "label": labels[label],
            "score": float(sure[first : last + 1].mean()),
            "text": text[where[first].start : where[last].end],
        }
        for first, last, label in zip(found.first.tolist(), found.last.tolist(), found.label.tolist(), strict=True)
    ]
