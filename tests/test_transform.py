"""Fitted transforms: partitions combine, and every reader computes the same."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from modelyard.errors import DataError
from modelyard.transform import FittedTransform, Moments, TransformConfig, fit_scaling
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
