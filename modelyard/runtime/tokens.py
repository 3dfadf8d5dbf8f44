"""Rows of tokens, a portion at a time: a long batch of texts would need more memory than there is."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from modelyard.transform.text import portions


def answer_tokens(answer: Callable[[np.ndarray], np.ndarray], rows: np.ndarray) -> np.ndarray:
    """Outputs (n, ...) for rows of tokens (n, t) int64.

    Args:
        answer: gives them for some rows, (m, s) int64, that are as narrow as they can be.
    """
    outputs: np.ndarray | None = None
    for chosen, some in portions(rows):
        found = answer(some)
        if outputs is None:
            outputs = np.empty((len(rows), *found.shape[1:]), dtype=found.dtype)
        outputs[chosen] = found
    assert outputs is not None, "there are rows"
    return outputs
