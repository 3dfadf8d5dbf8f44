"""Rows by the values of a column."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from modelyard.errors import ConfigError
from modelyard.evaluate.slices import MAX_VALUES, Slicer, fit_slicers


def named(frame: pd.DataFrame, column: str) -> pd.Series:
    return pd.Series(Slicer.fit(column, frame[column]).names(frame))


def test_few_values_are_slices_each():
    """Words and small numbers name their slice, whole ones without a point; gaps have one of their own."""
    frame = pd.DataFrame({"city": ["Bern", "Genf", None, "Bern"], "rooms": [2.0, 3.0, np.nan, 2.5]})
    assert named(frame, "city").tolist() == ["city = Bern", "city = Genf", "city missing", "city = Bern"]
    assert named(frame, "rooms").tolist() == ["rooms = 2", "rooms = 3", "rooms missing", "rooms = 2.5"]


def test_many_numbers_are_quarters():
    """Every row falls into one of four slices of about equal size, and a gap into none of them."""
    names = named(pd.DataFrame({"age": [*np.arange(100.0), np.nan]}), "age")
    counts = names.value_counts()
    assert counts["age missing"] == 1
    assert sorted(counts.drop("age missing")) == [25, 25, 25, 25]
    assert names[0] == "age <= 24.75"
    assert names[99] == "age > 74.25"


@pytest.mark.parametrize("zone", [None, "Europe/Berlin"])
def test_dates_are_quarters_too(zone: str | None):
    """Earlier and later ones, in a time zone or in none."""
    days = pd.date_range("2026-01-01", periods=80, freq="D", tz=zone)
    names = named(pd.DataFrame({"day": [*days, pd.NaT]}), "day")
    assert names[0] == "day <= 2026-01-20 18:00"
    assert names[80] == "day missing"
    assert sorted(names.drop(80).value_counts()) == [20, 20, 20, 20]


def test_many_words_are_the_frequent_ones_and_the_rest():
    """Nineteen slices and one; a value that nobody had seen belongs to the rest."""
    words = [f"person {number}" for number in range(30) for _ in range(30 - number)]
    slicer = Slicer.fit("name", pd.Series(words))
    found = pd.Series(slicer.names(pd.DataFrame({"name": [*words, "a stranger"]})))
    counts = found.value_counts()
    assert len(counts) == MAX_VALUES
    assert counts["name = person 0"] == 30
    assert counts["name = any other"] == sum(range(1, 12)) + 1


def test_a_sorted_split_is_sliced_by_all_its_values():
    """What comes last is known as what comes first: the sample is taken from the whole split, which is read once."""
    reads = iter([pd.DataFrame({"city": [city] * 100, "row": np.arange(100)}) for city in ("Bern", "Genf", "Uri")])
    city, row = fit_slicers(["city", "row"], reads, 300)
    assert city.names(pd.DataFrame({"city": ["Uri"]})).tolist() == ["city = Uri"]
    assert row.names(pd.DataFrame({"row": [0]})).tolist() == ["row <= 24.75"]


def test_columns_that_make_no_slices_are_refused():
    """One that is not there, with those that are; lists, which nothing equals."""
    frame = pd.DataFrame({"name": ["x"], "tags": [["a", "b"]]})
    with pytest.raises(ConfigError, match="no column 'nobody'; it has name"):
        fit_slicers(["nobody"], [frame], 1)
    with pytest.raises(ConfigError, match="column 'tags' holds lists: no slices"):
        fit_slicers(["tags"], [frame], 1)
