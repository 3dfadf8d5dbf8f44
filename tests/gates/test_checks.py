"""Verdict rules at their limits."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.gates import Check, Verdict, allowed_drop, floor
from tests.workbench import PROPERTY

FRACTIONS = st.floats(0, 1)


def test_a_floor_is_reached_by_touching_it():
    """The limit itself passes; the next smaller number does not."""
    assert floor("accuracy", 0.9, 0.9).passed
    assert not floor("accuracy", math.nextafter(0.9, 0), 0.9).passed


@pytest.mark.parametrize(
    "check",
    [
        floor("accuracy", math.nan, 0.0),
        floor("accuracy", 0.9, math.nan),
        allowed_drop("accuracy", math.nan, 0.5, 0.1, against="float"),
        allowed_drop("accuracy", 0.5, math.nan, 0.1, against="float"),
    ],
)
def test_nan_never_passes(check: Check):
    """A number that is none cannot let a candidate through, on either side."""
    assert not check.passed


@PROPERTY
@given(reference=FRACTIONS, drop=FRACTIONS)
def test_a_drop_may_be_used_up(reference: float, drop: float):
    """A candidate exactly on the limit passes, whatever rounding made of the limit."""
    assert allowed_drop("accuracy", reference - drop, reference, drop, against="float").passed


def test_decimal_limits_hold():
    """0.95 - 0.01 is not quite 0.94 in binary; the candidate at 0.94 passes all the same."""
    assert allowed_drop("accuracy", 0.94, 0.95, 0.01, against="champion").passed
    assert not allowed_drop("accuracy", 0.9399, 0.95, 0.01, against="champion").passed


def test_a_verdict_passes_when_every_check_does():
    """Reasons are the sentences of the failed checks; the table has every check."""
    good, bad = floor("accuracy", 0.9, 0.8), floor("f1", 0.7, 0.8)
    assert Verdict(subject="x", checks=[good]).passed
    verdict = Verdict(subject="x", checks=[good, bad])
    assert not verdict.passed
    assert verdict.reasons == ["f1 0.7000 is below the floor 0.8000"]
    assert [row["result"] for row in verdict.table()] == ["passed", "REFUSED"]
