"""Which revision may be tried, and when."""

from __future__ import annotations

import math

import pytest

from modelyard.gates import RolloutPolicy
from modelyard.revisions import ModelState, Revision, RolloutUnderWay
from modelyard.serve.attempts import Attempts


class Clock:
    """Stands still until it is told."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr("modelyard.serve.attempts.time", found)
    return found


def revision(number: int, *load_seconds: float) -> Revision:
    """One that begins rollouts whose canaries have so many seconds to load."""
    models = {
        f"model-{place}": ModelState.model_construct(
            rollout=RolloutUnderWay.model_construct(policy=RolloutPolicy(load_seconds=seconds))
        )
        for place, seconds in enumerate(load_seconds)
    }
    return Revision.model_construct(number=number, models=models)


def test_a_failure_in_passing_rests_longer_each_time(clock: Clock):
    """1, 2, 4 seconds, 5 at most; another revision need not wait, and a success begins anew."""
    attempts = Attempts(1, 5)
    for pause in (1, 2, 4, 5, 5):
        attempts.begin(revision(7))
        attempts.rest()
        assert attempts.may_try(revision(8))
        clock.now += pause - 0.01
        assert not attempts.may_try(revision(7))
        clock.now += 0.01
        assert attempts.may_try(revision(7))
    attempts.succeed()
    attempts.rest()
    clock.now += 1
    assert attempts.may_try(revision(7))


def test_what_was_refused_waits_for_somebody_who_asks(clock: Clock):
    """However long that takes; it rests no more then either."""
    attempts = Attempts(1, 5)
    attempts.begin(revision(7))
    attempts.refuse(revision(7))
    attempts.rest()
    clock.now += 10**6
    assert not attempts.may_try(revision(7))
    attempts.forgive()
    assert attempts.may_try(revision(7))


def test_loading_has_the_time_of_the_shortest_policy(clock: Clock):
    """From the first try on, over all of them; a revision without a rollout has no bound."""
    attempts, both = Attempts(1, 5), revision(7, 60, 40)
    assert attempts.loading_seconds(both) == (40, 40)
    attempts.begin(both)
    clock.now += 30
    attempts.begin(both)
    assert attempts.loading_seconds(both) == (10, 40)
    assert not attempts.is_beyond_loading(both)
    clock.now += 10
    assert attempts.is_beyond_loading(both)
    attempts.begin(revision(8))
    assert attempts.loading_seconds(revision(8)) == (None, math.inf)
    assert not attempts.is_beyond_loading(revision(8))
