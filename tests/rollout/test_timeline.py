"""The picture of a rollout."""

from __future__ import annotations

from modelyard.ledger import Span
from modelyard.rollout.timeline import timeline
from modelyard.rollout.watch import Look


def span(version: str, weight: float, begin: str, end: str | None, revision: int) -> Span:
    return Span(model="m", version=version, digest=version, weight=weight, begin=begin, end=end, revision=revision,
                author="a", reason="r", decision=None)  # fmt: skip


def test_weights_and_evidence_share_their_seconds():
    """The version before has served for days: the picture begins with the rollout, and shows that one beside it."""
    began, ended = "2026-01-09T12:00:00+00:00", "2026-01-09T12:00:10+00:00"
    spans = [
        span("1", 100, "2026-01-01T00:00:00+00:00", began, 1),
        span("1", 50, began, ended, 2),
        span("2", 50, began, ended, 2),
        span("2", 100, ended, None, 3),
    ]
    look = Look(seconds=8.0, canary="2", step=0, num_steps=2, weight=50, waits_for="", checks=[], counts=[],
                slow_seconds=None, upper_error_rate=1.0)  # fmt: skip
    upper, lower = timeline(spans, [look], "m version 2 serves", began).axes
    left, right = upper.get_xlim()
    assert -1 < left < 0
    assert 10 <= right < 11
    assert lower.get_xlim() == (left, right)
    first, second = upper.get_lines()
    assert (first.get_xdata()[1], first.get_ydata()[2]) == (left, 100)
    assert max(second.get_xdata()) == right
