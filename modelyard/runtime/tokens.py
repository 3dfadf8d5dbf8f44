"""Rows of tokens, a portion at a time: a long batch of texts would need more memory than there is."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from modelyard.transform.text import portions


def answer_tokens(answer: Callable[[np.ndarray], np.ndarray], rows: np.ndarray) -> np.ndarray:
    """Outputs (n, ...) for rows of tokens (n, t) int64. Where a network answers for each token, (n, t, k), outputs of places
    without a token are 0, whatever a row was computed with.

    Args:
        answer: gives them for some rows, (m, s) int64, that are as narrow as they can be.
    """
    outputs: np.ndarray | None = None
    for chosen, some in portions(rows):
        found = answer(some)
        by_token = found.ndim == 3
        if outputs is None:
            shape = (rows.shape[1], found.shape[2]) if by_token else found.shape[1:]
            outputs = np.zeros((len(rows), *shape), dtype=found.dtype)
        if by_token:
            outputs[chosen, : some.shape[1]] = np.where((some >= 0)[..., None], found, 0)
        else:
            outputs[chosen] = found
    assert outputs is not None, "there are rows"
    return outputs
