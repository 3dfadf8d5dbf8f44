"""How forms are timed."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import numpy as np
import pytest

from modelyard.compress import latency
from modelyard.compress.latency import MOST_TIMES, WARM_UP_RUNS, Timing, combined, is_settled, measure_in_turns


class Counted:
    """A form that takes as long as it is told, and counts its calls."""

    input_width = 2

    def __init__(self, *milliseconds: float) -> None:
        self.milliseconds, self.calls = milliseconds, 0

    def run(self, features: np.ndarray) -> np.ndarray:
        self.calls += 1
        time.sleep(self.milliseconds[self.calls % len(self.milliseconds)] / 1e3)
        return features

    def run_named(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        raise NotImplementedError


@pytest.mark.parametrize(("enough", "times"), [(math.inf, 1), (0.02, MOST_TIMES)])
def test_a_noisy_machine_is_measured_longer(monkeypatch: pytest.MonkeyPatch, enough: float, times: int):
    """Until the ratios are known well enough, within a bound; every form gets the same turns."""
    monkeypatch.setattr(latency, "TURN_SECONDS", 0.0)
    forms = {"float": Counted(1), "wavering": Counted(0.5, 2, 4)}
    found = measure_in_turns(
        forms, np.zeros((1, 2), np.float32), 1, reference="float", rounds=4, repeats=4, enough=enough
    )
    assert {form.calls for form in forms.values()} == {WARM_UP_RUNS + 4 * times}
    assert found["float"].ratio == 1
    assert found["wavering"].noise > 0.02


def test_a_steady_form_is_not_measured_on(monkeypatch: pytest.MonkeyPatch):
    """One that always takes its time is known after the first rounds."""
    monkeypatch.setattr(latency, "TURN_SECONDS", 0.0)
    form = Counted(1)
    measure_in_turns(
        {"float": form}, np.zeros((1, 2), np.float32), 1, reference="float", rounds=4, repeats=4, enough=0.02
    )
    assert form.calls == WARM_UP_RUNS + 4


@pytest.mark.parametrize(
    ("ratios", "settled"), [((1, 0.5, 0.51), True), ((1, 0.5, 0.56), True), ((1, 0.5, 0.526), False)]
)
def test_who_is_nearly_as_fast_is_not_settled(ratios: tuple[float, ...], *, settled: bool):
    """Where it could be slower than the fastest by more than a tie, 5 % here, or by less."""
    found = {f"form{ratio}": Timing(p50_ms=1, p99_ms=1, ratio=ratio, noise=0.01) for ratio in ratios}
    assert is_settled(found, 0.05) == settled


def test_noise_is_that_between_processes():
    """A form that each process measures closely, and each otherwise, is not known closely."""
    takes = [Timing(p50_ms=ratio, p99_ms=3 * ratio, ratio=ratio, noise=0.001) for ratio in (0.48, 0.50, 0.52)]
    one = combined(takes)
    assert (one.p50_ms, one.p99_ms, one.ratio) == (0.5, 1.5, 0.5)
    assert one.noise == pytest.approx(4.303 * 0.02 / 3**0.5 / 0.5, abs=1e-4)
    alike = [Timing(p50_ms=1, p99_ms=1, ratio=0.5, noise=0.03)] * 9
    assert combined(alike).noise == pytest.approx(0.01, abs=1e-4)
    assert combined(alike[:1]) == alike[0]
