"""What a data set asks of a model, as the loss wants it: from rows to encoded targets, with the texts at hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from modelyard.errors import DataError
from modelyard.task_kinds import Target, task_kind
from modelyard.token_labels import NO_TAG, labels_of, places, spans_of_json, tags_at
from modelyard.transform import RowTransform, TextTransform

if TYPE_CHECKING:
    import pandas as pd


def encoded_targets(transform: RowTransform, target: Target, frame: pd.DataFrame) -> np.ndarray:
    """Targets of rows: (n,), or of token classification tags (n, t) int64, `NO_TAG` where a token carries none, as wide as
    the longest text.

    Raises:
        DataError: classes unknown to training, or spans that do not begin and end with tokens of this tokenizer.
    """
    if target.task != "token_classification":
        return task_kind(target.task).encode(target, frame[target.column])
    assert isinstance(transform, TextTransform), "token classification reads texts"
    return _tags(transform, target, list(frame[transform.column]), list(frame[target.column]))


def joined_targets(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Targets of several batches in one array; narrower rows of tags are filled up."""
    width = max((part.shape[1] for part in parts if part.ndim == 2), default=0)
    if not width or parts[0].dtype.kind != "i":
        return np.concatenate(parts)
    return np.concatenate(
        [np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=NO_TAG) for part in parts]
    )


def _tags(transform: TextTransform, target: Target, texts: Sequence[str], spans: Sequence[str]) -> np.ndarray:
    numbers = {label: number for number, label in enumerate(labels_of(target.classes))}
    encodings = transform.encodings(texts)
    tags = np.full((len(texts), max((len(one.ids) for one in encodings), default=1)), NO_TAG, dtype=np.int64)
    for row, (text, encoding, kept) in enumerate(zip(texts, encodings, spans, strict=True)):
        wanted = spans_of_json(kept)
        if strangers := sorted({span.label for span in wanted} - numbers.keys()):
            raise DataError(f"target column {target.column!r} has labels unknown to training: {', '.join(strangers)}")
        where = places(encoding, text, transform.subwords)
        tags[row, [place.token for place in where]] = tags_at(wanted, where, numbers)
    return tags
