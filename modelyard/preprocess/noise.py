"""Which labels are probably wrong: confident learning (Northcutt, Jiang & Chuang, JAIR 2021), by cross-validation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import polars as pl

from modelyard.preprocess.fitting import codes_of
from modelyard.transform import FittedTransform

MOST_ROWS = 20_000
FOLDS = 5
SEED = 0


def suspects(
    transform: FittedTransform,
    train: Iterator[pl.DataFrame],
    num_rows: int,
    column: str,
    encode: Callable[[pl.Series], np.ndarray],
    classes: list[Any],
    most: int,
) -> dict[str, Any]:
    """The training rows whose label a model of the other rows contradicts most.

    Args:
        train: all training rows, in order; at most `MOST_ROWS` of them, evenly spread, are looked at.
        num_rows: how many there are.
        column: of the labels; ``encode`` makes class numbers of them, positions in ``classes``.
        most: so many are listed.

    Returns:
        ``checked`` and ``suspected`` rows, and under ``rows`` the first suspects: ``row`` (number in the training
        split, from 0), ``given`` and ``likely`` label, and what the model gives each of them.
    """
    stride = max(1, -(-num_rows // MOST_ROWS))
    inputs, labels, numbers, start = [], [], [], 0
    for frame in train:
        some = frame.gather_every(stride, -start % stride)
        numbers.append(np.arange(start + -start % stride, start + frame.height, stride))
        start += frame.height
        inputs.append(transform.apply(codes_of(transform, some)))
        labels.append(encode(some[column]))
    found = np.concatenate(labels)
    enough = np.isin(found, np.flatnonzero(np.bincount(found) >= FOLDS))
    found, rows = found[enough], np.concatenate(numbers)[enough]
    if len(np.unique(found)) < 2:
        return {"checked": 0, "suspected": 0, "rows": []}
    chances, known = _chances(np.concatenate(inputs)[enough], found)
    likely, margins = _contradicted(chances, np.searchsorted(known, found))
    order = [int(at) for at in np.argsort(margins, kind="stable") if likely[at] >= 0]
    return {
        "checked": len(found),
        "suspected": len(order),
        "rows": [
            {
                "row": int(rows[at]),
                "given": str(classes[found[at]]),
                "likely": str(classes[known[likely[at]]]),
                "chance_given": round(float(chances[at, np.searchsorted(known, found[at])]), 4),
                "chance_likely": round(float(chances[at, likely[at]]), 4),
            }
            for at in order[:most]
        ],
    }


def _chances(inputs: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each row, by a model that did not see it: (n, classes) probabilities; and the class of each column."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=SEED)
    with threadpool_limits(1):  # sums in one order, whatever the machine
        scaled = StandardScaler().fit_transform(inputs.astype(np.float64))
        model = LogisticRegression(max_iter=300, C=0.1)
        return cross_val_predict(model, scaled, labels, cv=folds, method="predict_proba"), np.unique(labels)


def _contradicted(chances: np.ndarray, given: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each row the class that it is confidently in, if that is another than the given one, else -1; and by how much
    the given one falls behind (more negative is worse).

    A class is confident where its probability reaches the mean over the rows that are said to be of it.
    """
    at = np.arange(len(given))
    thresholds = np.array([chances[given == label, label].mean() for label in range(chances.shape[1])])
    confident = np.where(chances >= thresholds, chances, -1.0)
    likely = confident.argmax(axis=1)
    other = (confident[at, likely] >= 0) & (likely != given)
    return np.where(other, likely, -1), chances[at, given] - chances[at, likely]
