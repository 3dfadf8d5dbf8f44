"""Some rows of a split, spread evenly over it: who wrote it may have sorted it, by class or by date."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd


def spread(num_rows: int, wanted: int) -> np.ndarray:
    """Numbers of at most ``wanted`` of so many rows, rising, (n,)."""
    if not num_rows or not wanted:
        return np.empty(0, dtype=np.int64)
    return np.unique(np.linspace(0, num_rows - 1, min(num_rows, wanted)).astype(np.int64))


def here(chosen: np.ndarray, position: int, num_rows: int) -> np.ndarray:
    """Those of ``chosen`` that lie in a portion of ``num_rows`` rows which begins at ``position``, counted from there."""
    return chosen[(chosen >= position) & (chosen < position + num_rows)] - position


def thinned(frame: pd.DataFrame, wanted: int) -> pd.DataFrame:
    """At most ``wanted`` rows of a frame, spread evenly."""
    return frame.iloc[spread(len(frame), wanted)]


def gathered(frames: Iterable[pd.DataFrame], num_rows: int, wanted: int) -> pd.DataFrame:
    """At most ``wanted`` of the ``num_rows`` rows that come portion by portion, numbered anew; no more than these and one
    portion are held in memory."""
    chosen, position, parts = spread(num_rows, wanted), 0, []
    for frame in frames:
        parts.append(frame.iloc[here(chosen, position, len(frame))])
        position += len(frame)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
