"""How forms are timed."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import numpy as np
import pytest

from modelyard.compress import latency
from modelyard.compress.latency import MOST_TIMES, WARM_UP_RUNS, measure_in_turns


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
