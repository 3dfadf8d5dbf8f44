"""How several processes' figures decide together, and when to stop."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pytest
from scipy.stats import mstats

from modelyard.compress.latency import Timing
from modelyard.compress.looks import (
    ERROR,
    LOOKS,
    Take,
    as_fast_as_any,
    combined,
    is_settled,
    mean_and_half_width,
    slower_by,
    together,
    until_settled,
)

TIE = 0.05


class Machine:
    """A busy one: each process is slower or faster than the one before as a whole, each form a little for itself, and now and
    then something holds one of them up."""

    def __init__(self, seed: int, **truth: float) -> None:
        self.truth, self.rng = truth, np.random.default_rng(seed)
        self.asked: list[Collection[str] | None] = []

    def take(self, contenders: Collection[str] | None) -> Take:
        self.asked.append(contenders)
        mood = self.rng.lognormal(sigma=0.1)
        forms = {name: self._timing(true * mood) for name, true in self.truth.items()
                 if contenders is None or name in contenders}  # fmt: skip
        return {1: forms} if contenders is not None else {1: forms, 32: forms}

    def _timing(self, true: float) -> Timing:
        ratio = true * self.rng.lognormal(sigma=0.015) * (1.3 if self.rng.random() < 0.03 else 1)
        return timing(ratio, noise=0.005)

    def verdict(self) -> list[str]:
        """Who is as fast as the fastest."""
        return as_fast_as_any(together(until_settled(self.take, 1, TIE), 1), TIE)


def timing(ratio: float, noise: float = 0.0) -> Timing:
    return Timing(p50_ms=ratio, p99_ms=3 * ratio, ratio=ratio, noise=noise)


@pytest.mark.parametrize("slower", [1.0, 1.04, 1.2, 1.3])
def test_a_busy_machine_decides_the_same_again(slower: float):
    """Two forms that differ by less than a tie are equal each time, by clearly more are told apart each time."""
    verdicts = [Machine(seed, fast=0.5, small=0.5 * slower).verdict() for seed in range(40)]
    expected = ["fast", "small"] if slower < 1 + TIE else ["fast"]
    assert verdicts == [expected] * len(verdicts)


def test_looking_several_times_says_no_more_that_is_not_so():
    """Where a form is slower by a tie exactly, it is not called slower."""
    wrong = sum("small" not in Machine(seed, fast=0.5, small=0.525).verdict() for seed in range(200))
    assert wrong / 200 <= ERROR


def test_who_has_lost_is_measured_no_more():
    """All forms and batch sizes up to the first look; then those alone that may still be as fast; and never without end."""
    machine = Machine(1, fast=0.5, near=0.525, slow=1.0)
    takes = until_settled(machine.take, 1, TIE)
    assert machine.asked[: LOOKS[0]] == [None] * LOOKS[0]
    assert all("slow" not in asked for asked in machine.asked[LOOKS[0] :] if asked is not None)
    assert LOOKS[0] < len(takes) <= LOOKS[-1]
    assert len(together(takes, 32)["slow"].takes) == len(together(takes, 1)["slow"].takes) == LOOKS[0]
    assert len(together(takes, 1)["fast"].takes) == len(takes)
    assert len(until_settled(machine.take, 1, None)) == LOOKS[0], "nobody asked who is the fastest"


@pytest.mark.parametrize(
    ("ratios", "settled"), [((1, 0.5, 0.51), True), ((1, 0.5, 0.56), True), ((1, 0.5, 0.526), False)]
)
def test_who_is_nearly_as_fast_is_not_settled(ratios: tuple[float, ...], *, settled: bool):
    """Where it could be slower than the fastest by more than a tie, 5 % here, or by less."""
    found = {f"form{ratio}": timing(ratio, noise=0.01) for ratio in ratios}
    assert is_settled(found, TIE) == settled


def test_what_meets_both_forms_falls_out():
    """Ratios that go up and down together by a tenth: their quotient is known all the same."""
    moods = (0.9, 1.0, 1.1)
    one, other = (combined({at: timing(true * mood) for at, mood in enumerate(moods)}) for true in (0.54, 0.5))
    assert one.noise > 0.2
    assert slower_by(one, other) == pytest.approx((0.08, 0.08))


def test_noise_is_that_between_processes():
    """A form that each process measures closely, and each otherwise, is not known closely."""
    one = combined({at: timing(ratio, 0.001) for at, ratio in enumerate((0.48, 0.50, 0.52))})
    assert (one.p50_ms, one.p99_ms, one.ratio) == (0.5, 1.5, 0.5)
    assert one.noise == pytest.approx(4.303 * 0.02 / 3**0.5 / 0.5, abs=1e-4)
    alike = dict.fromkeys(range(9), timing(0.5, 0.03))
    assert combined(alike).noise == pytest.approx(0.01, abs=1e-4)
    assert combined({0: alike[0]}).noise == 0.03


def test_one_process_that_was_held_up_does_not_hide_the_others():
    """The mean is that of the others, the interval that which scipy has for trimmed means."""
    values = [*np.random.default_rng(0).normal(0.5, 0.01, size=9), 5.0]
    mean, half = mean_and_half_width(values, 0.95)
    low, high = mstats.trimmed_mean_ci(np.array(values), (0.2, 0.2), alpha=0.05)
    assert (mean - half, mean + half) == pytest.approx((low, high))
    assert half < 0.02
    assert mean_and_half_width([0.5], 0.95) == (0.5, 0.0)
