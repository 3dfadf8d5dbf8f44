"""Fitted transforms: partitions combine, and every reader computes the same."""

import subprocess
import sys
from datetime import datetime

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from modelyard.errors import DataError
from modelyard.transform import (
    Category,
    DateParts,
    FeatureScale,
    FittedTransform,
    HashedCategory,
    Moments,
    Sample,
    SelectConfig,
    TransformConfig,
    fit_scaling,
    reduce,
)
from tests.workbench import PROPERTY

ROWS = arrays(np.float64, st.tuples(st.integers(2, 40), st.just(3)), elements=st.floats(-1e6, 1e6))
COLUMNS = ["a", "b", "c"]


@PROPERTY
@given(rows=ROWS, cut=st.floats(0.01, 0.99))
def test_moments_of_parts_merge_to_those_of_the_whole(rows: np.ndarray, cut: float):
    """How rows are cut into partitions does not matter beyond rounding."""
    edge = min(max(int(cut * len(rows)), 1), len(rows) - 1)
    merged = Moments.of(rows[:edge]).merge(Moments.of(rows[edge:]))
    assert (merged.count == len(rows)).all()
    np.testing.assert_allclose(merged.mean, rows.mean(axis=0), rtol=1e-9, atol=1e-6)
    np.testing.assert_allclose(merged.deviation, rows.std(axis=0), rtol=1e-6, atol=1e-4)
    np.testing.assert_array_equal(merged.low, rows.min(axis=0))
    np.testing.assert_array_equal(merged.high, rows.max(axis=0))


@PROPERTY
@given(ROWS)
def test_standard_scaling_centres(rows: np.ndarray):
    """After fitting, the training rows have mean 0, and deviation 1 or (constant columns) 0."""
    transform = fit_scaling(COLUMNS, Moments.of(rows), TransformConfig(scaling="standard"))
    applied = transform.apply(rows)
    assert applied.dtype == np.float32
    assert np.isfinite(applied).all()
    spread = rows.std(axis=0) > 1e-3
    np.testing.assert_allclose(applied.mean(axis=0)[spread], 0, atol=1e-3)
    np.testing.assert_allclose(applied.std(axis=0)[spread], 1, atol=1e-2)


def test_minmax_spans_zero_to_one():
    """The smallest training value becomes 0, the largest 1; a constant column becomes 0."""
    rows = np.array([[0.0, 5.0], [4.0, 5.0], [8.0, 5.0]])
    transform = fit_scaling(["a", "b"], Moments.of(rows), TransformConfig(scaling="minmax"))
    np.testing.assert_array_equal(transform.apply(rows), [[0, 0], [0.5, 0], [1, 0]])


def test_none_changes_nothing():
    """Without scaling only the type changes."""
    rows = np.array([[1.5, -2.0]])
    transform = fit_scaling(["a", "b"], Moments.of(rows), TransformConfig(scaling="none"))
    np.testing.assert_array_equal(transform.apply(rows), rows)


def fitted() -> FittedTransform:
    rows = np.random.default_rng(0).normal(7, 3, size=(50, 3)).round(2)
    return fit_scaling(COLUMNS, Moments.of(rows), TransformConfig())


def test_data_round_trip():
    """A transform read back from JSON computes the same bits."""
    transform = fitted()
    again = FittedTransform.model_validate_json(transform.model_dump_json())
    rows = np.random.default_rng(1).normal(size=(5, 3))
    np.testing.assert_array_equal(again.apply(rows), transform.apply(rows))


def test_clients_of_any_dtype_get_one_answer():
    """Integers, float32 and float64 of one value become the same network input."""
    rows = np.array([[1, 2, 3], [4, 5, 6]])
    expected = fitted().apply(rows)
    for dtype in (np.float32, np.float64, np.uint8):
        np.testing.assert_array_equal(fitted().apply(rows.astype(dtype)), expected)


def test_frames_are_read_by_name():
    """Order and further columns of a frame do not matter; a missing one is named."""
    frame = pd.DataFrame({"c": [3.0], "extra": ["x"], "a": [1.0], "b": [2.0]})
    np.testing.assert_array_equal(fitted().apply_frame(frame), fitted().apply(np.array([[1.0, 2.0, 3.0]])))
    with pytest.raises(DataError, match="missing: b"):
        fitted().apply_frame(frame.drop(columns="b"))


@pytest.mark.parametrize("shape", [(3,), (1, 2), (1, 3, 1)])
def test_other_shapes_are_refused(shape: tuple[int, ...]):
    """The error says how wide a row must be and what came."""
    with pytest.raises(DataError, match="3 values"):
        fitted().apply(np.zeros(shape))


# -- categories, dates, gaps --------------------------------------------------------------------------------------

CITY = Category(kind="one_hot", name="city", values=["Lima", "Oslo"])
MIXED = FittedTransform(
    features=[
        FeatureScale(name="age", offset=40, scale=10, fill=35.0, low=0.0, high=100.0),
        CITY,
        Category(kind="ordinal", name="size", values=["S", "M", "L"], fill="M"),
        HashedCategory(name="code", buckets=8),
        DateParts(name="when", parts=["elapsed", "month", "day", "weekday", "hour", "minute"], low=0.0, high=1e15),
    ]
)
ANY_ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "age": st.one_of(st.none(), st.floats(-1e6, 1e6)),
            "city": st.one_of(st.none(), st.sampled_from(["Lima", "Oslo", "Paris", ""])),
            "size": st.one_of(st.none(), st.sampled_from(["S", "M", "L", "XL"])),
            "code": st.one_of(st.none(), st.text(max_size=5)),
            "when": st.datetimes(min_value=datetime(1950, 1, 1), max_value=datetime(2100, 1, 1)),  # noqa: DTZ001
        }
    ),
    min_size=1,
    max_size=20,
)


@PROPERTY
@given(ANY_ROWS)
def test_training_evaluation_and_endpoint_compute_the_same_bits(rows: list[dict]):
    """A whole frame as training reads it, rows of codes as evaluation passes them on, single raw rows with ISO dates as a
    client sends them, read back from JSON: bit for bit one input."""
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    frame = pd.DataFrame(columns).astype({"when": "datetime64[us]"})
    trained = MIXED.apply_frame(frame)
    assert trained.shape == (len(rows), MIXED.width)
    again = FittedTransform.model_validate_json(MIXED.model_dump_json())
    np.testing.assert_array_equal(again.apply(again.rows(columns)), trained)
    for number, row in enumerate(rows):
        sent = {name: [value] for name, value in row.items()} | {"when": [row["when"].isoformat()]}
        np.testing.assert_array_equal(again.apply_columns(sent)[0], trained[number])


def test_each_encoding_says_what_it_is():
    """Known values, unknown ones and gaps, and the cycles of a date at their quarters."""
    assert MIXED.columns == ["age", "city", "size", "code", "when"]
    assert MIXED.width == 1 + 2 + 1 + 8 + 11
    columns = {
        "age": [50, None, 1000],
        "city": ["Oslo", "Paris", None],
        "size": ["L", None, "XL"],
        "code": ["x", "x", None],
        "when": ["1970-01-01", "1970-04-01T06:30", "1970-01-05T12:15"],
    }
    inputs = MIXED.apply_columns(columns)
    assert inputs[:, 0].tolist() == [1.0, -0.5, 6.0]
    assert inputs[:, 1:3].tolist() == [[0, 1], [0, 0], [0, 0]]
    np.testing.assert_allclose(inputs[:, 3], [1, 2 / 3, 0], rtol=1e-6)
    assert inputs[0, 4:12].tolist() == inputs[1, 4:12].tolist()
    assert inputs[:, 4:12].sum(axis=1).tolist() == [1, 1, 0]
    month, weekday, hour, minute = (inputs[:, at : at + 2] for at in (13, 17, 19, 21))
    np.testing.assert_allclose(month, [[0, 1], [1, 0], [0, 1]], atol=1e-6)
    np.testing.assert_allclose(weekday[2], [0, 1], atol=1e-6)  # 5 January 1970 was a Monday
    np.testing.assert_allclose(
        hour[1], np.array([np.sin(2 * np.pi * 6.5 / 24), np.cos(2 * np.pi * 6.5 / 24)]), atol=1e-6
    )
    np.testing.assert_allclose(minute[2], [1, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"age": ["old"]}, "column 'age' holds 'old', which is not a number"),
        ({"when": ["tomorrow"]}, "column 'when' holds something that is no date"),
        ({"when": [None]}, "column 'when' has no value in row 0"),
        ({"age": [1, 2]}, "different lengths: 2, 1"),
    ],
)
def test_raw_rows_that_cannot_be_read_are_named(columns: dict, sentence: str):
    """The column and what it holds."""
    good = {"age": [1], "city": ["Lima"], "size": ["S"], "code": ["x"], "when": ["2020-01-01"]}
    with pytest.raises(DataError, match=sentence):
        MIXED.rows(good | columns)


def test_a_gap_without_a_fill_is_refused():
    """A NaN would go through a network and come out as an answer."""
    with pytest.raises(DataError, match="column 'b' has no value in row 1, and none to fill in"):
        fitted().rows({"a": [1, 2], "b": [1, None], "c": [1, 2]})


@PROPERTY
@given(
    rows=arrays(
        np.float64, st.tuples(st.integers(1, 30), st.just(2)), elements=st.one_of(st.just(np.nan), st.floats(-9, 9))
    ),
    cut=st.integers(0, 30),
)
def test_moments_leave_gaps_out(rows: np.ndarray, cut: int):
    """NaN is no value, wherever partitions are cut; a column of nothing else has count 0."""
    merged = Moments.of(rows[:cut]).merge(Moments.of(rows[cut:]))
    for column in range(2):
        values = rows[~np.isnan(rows[:, column]), column]
        assert merged.count[column] == len(values)
        if len(values):
            np.testing.assert_allclose(merged.mean[column], values.mean(), atol=1e-9)
            np.testing.assert_allclose(merged.deviation[column], values.std(), atol=1e-6)


@PROPERTY
@given(st.lists(st.integers(0, 2000), min_size=1, max_size=20))
def test_a_sample_does_not_depend_on_how_values_came(cuts: list[int]):
    """Beyond its size it keeps an even share, the same one for every way of cutting."""
    values = np.arange(3000.0)
    whole, parts = Sample(500), Sample(500)
    whole.add(values)
    for part in np.split(values, sorted(cuts)):
        parts.add(part)
    assert len(whole) <= 500
    assert [whole.quantile(share) for share in (0, 0.5, 1)] == [parts.quantile(share) for share in (0, 0.5, 1)]
    assert whole.quantile(0.5) == pytest.approx(1500, abs=20)


@PROPERTY
@given(st.lists(st.integers(0, 3000), max_size=8))
def test_samples_of_partitions_make_one_of_the_whole(cuts: list[int]):
    """Each as sparse as the sparsest, so that no partition counts for more than its rows."""
    whole = Sample(500)
    for part in np.split(np.arange(3000.0), sorted(cuts)):
        sample = Sample(200)
        sample.add(part)
        whole.merge(*sample.state())
    assert len(whole) <= 500
    assert whole.quantile(0.5) == pytest.approx(1500, abs=150)
    for share in (0.0, 1.0):
        assert whole.quantile(share) == pytest.approx(3000 * share, abs=40)


def test_selection_and_extraction_shrink_the_input():
    """Constant inputs go, the informative one stays, and components keep what varies together."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 2000)
    rows = np.column_stack(
        [labels + rng.normal(0, 0.1, 2000), rng.normal(size=2000), np.ones(2000), rng.normal(size=2000)]
    )
    whole = fit_scaling(["a", "b", "c", "d"], Moments.of(rows), TransformConfig(scaling="none"))
    outputs = whole.apply(rows)
    moments = Moments.of(outputs)
    varied = reduce.select(whole, moments, outputs, labels, SelectConfig(variance=0.01))
    assert varied.selected == [0, 1, 3]
    best = reduce.select(whole, moments, outputs, labels, SelectConfig(mutual_information=1))
    assert best.selected == [0]
    assert best.apply(rows).shape == (2000, best.width) == (2000, 1)
    small = reduce.extract(varied, iter(np.split(varied.apply(rows).astype(float), 4)), 2)
    assert small.width == 2
    again = FittedTransform.model_validate_json(small.model_dump_json())
    projected = again.apply(rows)
    np.testing.assert_array_equal(projected[:1], again.apply(rows[:1]))  # whatever it is batched with
    assert projected.std(axis=0).min() > 0.9
    with pytest.raises(DataError, match=r"transform\.components: 5 are more than the 3 inputs"):
        reduce.extract(varied, iter([]), 5)
    with pytest.raises(DataError, match="no input has a variance above"):
        reduce.select(whole, moments, outputs, labels, SelectConfig(variance=1e9))


def test_the_endpoint_applies_it_without_frames():
    """Raw rows become inputs with numpy alone."""
    code = (
        "import sys; from modelyard.transform import FittedTransform;"
        f"t = FittedTransform.model_validate_json({MIXED.model_dump_json()!r});"
        "t.apply_columns({'age': [1], 'city': ['Lima'], 'size': ['S'], 'code': ['x'], 'when': ['2020-01-01']});"
        "print(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"pandas", "pyarrow", "polars", "duckdb", "sklearn", "torch"} & set(loaded)
