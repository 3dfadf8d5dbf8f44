"""Where ranks stand, and who is named when nobody comes on."""

from __future__ import annotations

import threading
import time

import pytest

from modelyard.train import RankEvent
from modelyard.train.pulse import Places, start_pulse

SHORT = 0.05


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank is silent after 50 ms."""
    monkeypatch.setattr("modelyard.train.pulse.SILENT_SECONDS", SHORT)
    monkeypatch.setattr("modelyard.train.pulse.PULSE_SECONDS", SHORT / 10)


def pulse(rank: int, step: int, where: str = "here") -> RankEvent:
    return RankEvent(kind="pulse", rank=rank, step=step, message=where)


@pytest.mark.usefixtures("soon")
def test_silent_ranks_are_told_from_those_that_wait():
    """One that says nothing more, one that was never heard, one that says where it stands, one that moves."""
    places = Places(range(4))
    assert not places.hear(pulse(0, 7))
    assert places.stuck() == ""
    for step in range(4):
        time.sleep(SHORT / 2)
        assert not places.hear(pulse(1, 7, "all_reduce (x.py:1)"))
        assert places.hear(pulse(3, step)) == (step > 0)
    assert places.stuck() == (
        "silent: rank 0 was last heard 0 s ago, at step 7 in here, rank 2 has never been heard;"
        " not coming on: rank 1 has stood for 0 s at step 7 in all_reduce (x.py:1)"
    )
    places.begin_again()
    assert places.stuck() == ""


@pytest.mark.usefixtures("soon")
def test_of_many_silent_ranks_some_are_named():
    """A group of hundreds is one line."""
    places = Places(range(200))
    time.sleep(2 * SHORT)
    assert places.stuck().endswith("rank 7 has never been heard, and 192 more")


@pytest.mark.usefixtures("soon")
def test_a_rank_that_hangs_says_where():
    """The innermost call, and below a library's the one that called it; the thread speaks while the main one waits."""
    heard: list[RankEvent] = []
    enough = threading.Event()

    def emit(event: RankEvent) -> None:
        heard.append(event)
        if len(heard) >= 3:
            enough.set()
            threading.Event().wait()  # for ever: nobody listens any more

    start_pulse(emit, lambda: 12)
    assert enough.wait(10)
    assert {(event.kind, event.step) for event in heard} == {("pulse", 12)}
    assert " below test_a_rank_that_hangs_says_where (train/test_pulse.py:" in heard[-1].message
    assert heard[-1].message.startswith("wait (")
