"""The user's own code over batches: cleaning steps, and labelling functions. Both see a pandas frame and give one back.

A batch is some of a file's rows, cut anywhere: a step may look at rows and columns of it, not across batches.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa

from modelyard.errors import ConfigError, DataError


def load(entry: str, field: str) -> Callable[..., Any]:
    """The function behind ``module:function``.

    Raises:
        ConfigError: there is none that can be imported here.
    """
    module, _, name = entry.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as failure:
        raise ConfigError(field, f"{entry!r} cannot be imported: {failure}; write it as module:function") from failure
    if not callable(function):
        raise ConfigError(field, f"{entry!r} is no function")
    return function


def apply_step(rows: pl.DataFrame, step: str, file: str) -> tuple[pl.DataFrame, np.ndarray]:
    """The rows that a step of the user's makes of these, and which of these they are: mask (n,).

    Raises:
        DataError: the step fails, or gives back something else than rows it was given.
    """
    function = load(step, "preprocess.steps")
    if not rows.height:
        return rows, np.zeros(0, dtype=bool)
    try:
        result = function(rows.to_pandas())
    except Exception as failure:
        raise DataError(f"{file}: step {step} failed: {type(failure).__name__}: {failure}") from failure
    if not isinstance(result, pd.DataFrame):
        raise DataError(f"{file}: step {step} gave a {type(result).__name__}, not a frame")
    if not result.index.is_unique or not result.index.isin(range(rows.height)).all():
        raise DataError(f"{file}: step {step} gave rows that it was not given; keep the frame's index, and add none")
    stays = np.zeros(rows.height, dtype=bool)
    stays[result.index.to_numpy(dtype=np.int64)] = True
    try:
        return pl.from_pandas(result.sort_index().reset_index(drop=True)), stays
    except (pa.ArrowException, pl.exceptions.PolarsError, ValueError) as failure:
        raise DataError(f"{file}: step {step} gave a column of several types or none: {failure}") from failure
