"""Texts of a request as tokens, within a bound: the router does this itself, and others wait meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from modelyard.errors import DataError
from modelyard.serve.datatypes import BadRequestError
from modelyard.transform import TextTransform

MAX_CHARACTERS = 2**20  # of one request; about a third of a second


def tokens_of(transform: TextTransform, texts: Sequence[Any]) -> np.ndarray:
    """Rows of tokens (n, t), int64.

    Raises:
        BadRequestError: together they are too long, or one is none.
    """
    cut = transform.max_characters
    total = sum(min(len(text), cut) for text in texts if isinstance(text, str))
    if total > MAX_CHARACTERS:
        raise BadRequestError(
            f"the texts have {total:,} characters, at most {MAX_CHARACTERS:,} are answered at once: send fewer of them"
        )
    try:
        return transform.tokens(texts)
    except DataError as failure:
        raise BadRequestError(str(failure)) from None
