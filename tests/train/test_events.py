"""The event channel of ranks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from modelyard.train.events import RankEvent, parse_event


@given(st.binary(max_size=200))
def test_noise_on_the_channel_is_no_event(noise: bytes):
    """Whatever a library prints, parsing never raises."""
    event = parse_event(noise)
    assert event is None or isinstance(event, RankEvent)


def test_event_survives_the_wire():
    """What a rank emits is what the launching process reads."""
    event = RankEvent(kind="failed", rank=1, message="line\nbreak", error="ValueError", permanent=True)
    assert parse_event(event.model_dump_json().encode()) == event
