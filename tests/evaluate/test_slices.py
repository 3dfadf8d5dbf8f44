"""Rows by the values of a column."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from modelyard.errors import ConfigError
from modelyard.evaluate.slices import Slicer


def test_few_values_are_slices_each():
    """Words and small numbers name their slice; gaps have one of their own."""
    frame = pd.DataFrame({"city": ["Bern", "Genf", None, "Bern"]})
    assert Slicer.fit("city", [frame]).names(frame).tolist() == [
        "city = Bern", "city = Genf", "city missing", "city = Bern",
    ]  # fmt: skip


def test_many_numbers_are_quarters():
    """Every row falls into one of four slices of about equal size, and a gap into none of them."""
    frame = pd.DataFrame({"age": [*np.arange(100.0), np.nan]})
    names = pd.Series(Slicer.fit("age", [frame]).names(frame))
    counts = names.value_counts()
    assert counts["age missing"] == 1
    assert sorted(counts.drop("age missing")) == [25, 25, 25, 25]
    assert names[0] == "age <= 24.75"
    assert names[99] == "age > 74.25"


def test_unknown_and_wordy_columns_are_refused():
    """The field is named, with what there is instead."""
    frame = pd.DataFrame({"name": [f"person {number}" for number in range(30)]})
    with pytest.raises(ConfigError, match="no column 'nobody'; it has name"):
        Slicer.fit("nobody", [frame])
    with pytest.raises(ConfigError, match="30 values that are no numbers"):
        Slicer.fit("name", [frame])
