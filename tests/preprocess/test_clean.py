"""Telling good rows from bad ones, without a store."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.preprocess.clean import REJECTED_SCHEMA, clean
from modelyard.preprocess.config import PreprocessConfig
from modelyard.preprocess.schema import Plan, make_plan
from tests.workbench import PROPERTY

CONFIG = PreprocessConfig(target="y", features=["a", "b"], identity=["who"], ranges={"a": (0, 10)})


ROWS = np.array([100, 101])


def batch(**columns: list | pa.Array) -> pl.DataFrame:
    good = {"a": [1.0] * 2, "b": [2.0] * 2, "y": [0, 1], "who": ["p", "q"]}
    return pl.DataFrame(pl.from_arrow(pa.table(good | columns))).with_columns(pl.col(pl.Categorical).cast(pl.String))


def plan(config: PreprocessConfig = CONFIG) -> Plan:
    return make_plan(config, "first.parquet", batch())


@pytest.mark.parametrize(
    ("columns", "column", "reason", "value"),
    [
        ({"a": [1.0, None]}, "a", "null", None),
        ({"a": [1.0, float("nan")]}, "a", "null", "NaN"),
        ({"a": [1.0, 11.0]}, "a", "out of range", "11.0"),
        ({"a": [1.0, -0.5]}, "a", "out of range", "-0.5"),
        ({"b": [1.0, float("-inf")]}, "b", "not finite", "-inf"),
        ({"b": ["1.5", "two"]}, "b", "not a number", "two"),
        ({"b": ["1.5", "1_0"]}, "b", "not a number", "1_0"),
        ({"y": [0, None]}, "y", "null", None),
        ({"y": [0.0, float("nan")]}, "y", "null", "NaN"),
        ({"y": [0.0, 0.5]}, "y", "not an integer", "0.5"),
        ({"y": ["0", "cat"]}, "y", "not an integer", "cat"),
        ({"who": ["p", None]}, "who", "null", None),
        ({"a": [1.0, 11.0], "y": [0, None]}, "a", "out of range", "11.0"),
    ],
)
def test_a_bad_row_is_put_down_with_its_first_fault(columns: dict, column: str, reason: str, value: str | None):
    """File, row number counted from 1, column, reason and value; the good row stays."""
    cleaned = clean(batch(**columns), plan(), "part.csv", ROWS)
    assert len(cleaned.rows) == 1
    assert cleaned.numbers.tolist() == [100]
    assert cleaned.rejected.to_dicts() == [
        {"file": "part.csv", "row": 101, "column": column, "reason": reason, "value": value}
    ]
    assert cleaned.rejected.to_arrow().cast(REJECTED_SCHEMA).num_rows == 1


def test_labels_outside_the_allowed_ones_are_refused():
    """`target_values` is the whole list; its type decides how labels are stored."""
    numbers = plan(CONFIG.model_copy(update={"target_values": [0, 2]}))
    assert clean(batch(), numbers, "f", ROWS).rejected["reason"].to_list() == ["unknown label"]
    texts = plan(CONFIG.model_copy(update={"target_values": ["0", "x"]}))
    cleaned = clean(batch(), texts, "f", ROWS)
    assert cleaned.rows["y"].to_list() == ["0"]


def test_one_value_is_stored_one_way():
    """Integers, floats, decimals, dictionaries and texts of the same numbers become the same clean rows."""
    forms = [
        batch(a=[1, 2], y=[3, 4]),
        batch(a=[1.0, 2.0], y=[3.0, 4.0]),
        batch(a=["1", "2.0"], y=["3", "4.0"]),
        batch(a=pa.array(["1", "2"]).dictionary_encode(), y=pa.array(["3", "4"]).dictionary_encode()),
        batch(a=pa.array([Decimal(1), Decimal(2)], pa.decimal128(5, 2)), y=pa.array([3, 4], pa.uint8())),
    ]
    frames = [clean(form, plan(), "f", ROWS).rows for form in forms]
    for frame in frames:
        assert frame.equals(frames[0])
    assert frames[0].schema == {"a": pl.Float64, "b": pl.Float64, "y": pl.Int64, "who": pl.String}


def test_minus_zero_is_zero():
    """Two spellings of one number must not hash apart."""
    cleaned = clean(batch(a=[0.0, -0.0]), plan(), "f", ROWS)
    assert not np.signbit(cleaned.rows["a"].to_numpy()).any()


CELLS = st.one_of(st.none(), st.floats(), st.sampled_from(["1", "x", "", "1e3", "-2", "nan", "0.1"]))


@PROPERTY
@given(st.lists(st.tuples(CELLS, CELLS, st.sampled_from(["0", "1", "", "dog", None])), min_size=1, max_size=30))
def test_no_row_is_lost(rows: list[tuple]):
    """Whatever comes, each row is either clean or refused, and the clean ones hold finite numbers in range."""
    texts = [[None if cell is None else str(cell) for cell in column] for column in zip(*rows, strict=True)]
    names = {"a": texts[0], "b": texts[1], "y": texts[2], "who": ["p"] * len(rows)}
    cleaned = clean(pl.DataFrame(names, schema=dict.fromkeys(names, pl.String)), plan(), "f", np.arange(len(rows)) + 1)
    assert len(cleaned.rows) + len(cleaned.rejected) == len(rows)
    assert np.isfinite(cleaned.rows.select("a", "b").to_numpy()).all()
    assert cleaned.rows["a"].is_between(0, 10).all()
    assert cleaned.rejected["row"].is_sorted()
    assert sorted([*cleaned.rejected["row"], *cleaned.numbers]) == list(range(1, len(rows) + 1))
