"""One reading of values, whichever file format they come from."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import compute

# A float column writes its whole numbers as 3.0: that is the label 3.
INTEGER = r"[+-]?\d{1,18}(\.0*)?"


def numbers(values: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """A column as float64 (n,), null as NaN, and a mask (n,) of what is there but is not a number."""
    values = _plain(values)
    none_bad = np.zeros(len(values), dtype=bool)
    try:
        return values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False), none_bad
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        parsed = [_number(value) for value in values.to_pylist()]
        return (
            np.array([np.nan if value is None else value[0] for value in parsed], dtype=np.float64),
            np.array([value is not None and value[1] for value in parsed], dtype=bool),
        )


def label_texts(values: pa.Array) -> pd.Series:
    """A target column as text, None where it is null, NaN or empty."""
    values = _plain(values)
    if pa.types.is_floating(values.type):
        texts = [None if value is None or math.isnan(value) else repr(value) for value in values.to_pylist()]
    else:
        texts = [value or None for value in values.cast(pa.string()).to_pylist()]
    return pd.Series(texts, dtype=object)


def identity_texts(values: pa.Array) -> pd.Series:
    """An identity column as text, None where it is null or empty."""
    return pd.Series([value or None for value in _plain(values).cast(pa.string()).to_pylist()], dtype=object)


def integers(texts: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Label texts as int64 (n,), 0 where they are none, and a mask (n,) of those that are."""
    readable = texts.str.fullmatch(INTEGER).fillna(False).to_numpy(dtype=bool)
    whole = [int(text.partition(".")[0]) if good else 0 for text, good in zip(texts, readable, strict=True)]
    return np.array(whole, dtype=np.int64), readable


def _plain(values: pa.Array) -> pa.Array:
    return compute.cast(values, values.type.value_type) if pa.types.is_dictionary(values.type) else values


def _number(value: str | None) -> tuple[float, bool] | None:
    """The number and False, NaN and True for a text that is none, None for nothing."""
    if value is None or not value.strip():
        return None
    try:
        return (float("nan"), True) if "_" in value else (float(value), False)
    except ValueError:
        return float("nan"), True
