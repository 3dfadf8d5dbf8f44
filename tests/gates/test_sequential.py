"""Sequential tests stay valid however often they are looked at: what Ville's inequality needs holds exactly."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from modelyard.gates import Flips, coin_flip_evidence, rate_evidence, upper_bound
from tests.workbench import PROPERTY

WEIGHTS = st.floats(0.001, 0.999)
COUNTS = st.integers(0, 30)
HISTORIES = st.lists(st.builds(Flips, WEIGHTS, COUNTS, COUNTS), max_size=3)


def after_one_more(history: list[Flips], weight: float, probability: float, tolerated_ratio: float) -> float:
    """The expected e-value after one more bad event that falls on the canary with this probability."""
    on_canary = coin_flip_evidence([*history, Flips(weight, 1, 0)], tolerated_ratio)
    on_stable = coin_flip_evidence([*history, Flips(weight, 0, 1)], tolerated_ratio)
    return probability * on_canary + (1 - probability) * on_stable


@PROPERTY
@given(HISTORIES, WEIGHTS, st.floats(1, 4))
def test_an_equal_canary_gains_no_evidence_on_average(history: list[Flips], weight: float, tolerated_ratio: float):
    """Whatever was seen and however the weight was changed since: the next bad event changes the mean by nothing.

    That makes it a martingale from 1, so no way of looking at it, stopping and going on can make false alarms likelier
    than alpha.
    """
    at_the_limit = weight * tolerated_ratio / (weight * tolerated_ratio + 1 - weight)
    now = coin_flip_evidence(history, tolerated_ratio)
    assert after_one_more(history, weight, at_the_limit, tolerated_ratio) == pytest.approx(now, rel=1e-9)


@PROPERTY
@given(HISTORIES, WEIGHTS, st.floats(0, 1))
def test_a_better_canary_loses_evidence_on_average(history: list[Flips], weight: float, fraction: float):
    """One that is bad less often than its weight explains can only seem less bad."""
    now = coin_flip_evidence(history)
    assert after_one_more(history, weight, fraction * weight, 1.0) <= now * (1 + 1e-9)


@PROPERTY
@given(st.integers(1, 60), st.floats(0.001, 0.5))
def test_evidence_against_a_bound_is_one_on_average(num: int, bound: float):
    """At the bound itself the expected evidence is at most 1, so the limit 1 / alpha is met with at most alpha."""
    mean = sum(binom.pmf(bad, num, bound) * rate_evidence(bad, num, bound) for bad in range(num + 1))
    assert mean <= 1 + 1e-9


@PROPERTY
@given(st.lists(st.builds(Flips, WEIGHTS, COUNTS, COUNTS), max_size=4), st.integers(0, 4))
def test_counts_of_several_routers_may_be_added_up(history: list[Flips], split: int):
    """Two routers' counts at one weight say what their sum says."""
    halves = [Flips(one.weight, one.canary // 2, min(split, one.stable)) for one in history]
    others = [
        Flips(one.weight, one.canary - half.canary, one.stable - half.stable)
        for one, half in zip(history, halves, strict=True)
    ]
    assert coin_flip_evidence([*halves, *others]) == pytest.approx(coin_flip_evidence(history), rel=1e-9)


def test_the_first_bad_events_of_an_outage_are_enough():
    """At 1 % of the requests, two failures of the canary and none elsewhere say more than chance could 1 in 250 times."""
    assert coin_flip_evidence([Flips(0.01, 2, 0)]) > 250
    assert coin_flip_evidence([Flips(0.01, 2, 200)]) < 1


def test_nothing_counted_says_nothing():
    """No event is evidence of 1, no request leaves every rate possible."""
    assert coin_flip_evidence([]) == 1
    assert coin_flip_evidence([Flips(1.0, 50, 0)]) == 1, "without a stable version beside it there is no coin"
    assert rate_evidence(0, 0, 0.01) == 0
    assert upper_bound(0, 0, 0.01) == 1


def test_a_thousand_good_answers_show_less_than_one_percent():
    """The figure that the documentation gives; more failures raise the bound, more answers lower it."""
    assert upper_bound(0, 1000, 0.01) == pytest.approx(0.0086, abs=1e-4)
    assert upper_bound(3, 1000, 0.01) > upper_bound(2, 1000, 0.01) > upper_bound(2, 2000, 0.01)


@PROPERTY
@given(st.integers(1, 10_000_000), st.floats(0, 1))
def test_bounds_are_numbers_for_any_counts(total: int, fraction: float):
    """Huge counts overflow nothing, and the bound lies between the measured rate and 1."""
    bad = round(total * fraction)
    bound = upper_bound(bad, total, 0.01)
    assert bad / total <= bound <= 1
    assert not math.isnan(rate_evidence(bad, total, 0.01))
    assert math.isfinite(coin_flip_evidence([Flips(0.3, bad, total - bad)]))
