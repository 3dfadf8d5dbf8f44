"""Who was live when, read from revisions; and what may follow what."""

from __future__ import annotations

import json
from itertools import pairwise
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from commands.main import app
from modelyard import transitions
from modelyard.artifacts import ArtifactRef
from modelyard.errors import NotFound, RolloutBusy
from modelyard.gates import RolloutPolicy
from modelyard.ledger import earlier_version, history, spans
from modelyard.revisions import Decision, ModelState, Revision, ServedVersion, first_revision, propose_revision
from modelyard.storage import Store
from tests.workbench import PROPERTY

POLICY = RolloutPolicy()


def version(number: int) -> ServedVersion:
    ref = ArtifactRef(uri="s3://modelyard/x", digest=f"{number:064x}", kind="compressed")
    return ServedVersion(version=str(number), artifact=ref, form="int8", verdict=ref)


def follow(current: Revision, models: transitions.Models | None) -> Revision:
    """The next revision, an hour later; the same where nothing had to change."""
    if models is None:
        return current
    number = current.number + 1
    return Revision(
        number=number, models=models, reason="a test", author="pytest", created_at=f"2026-01-01T{number:02}:00:00+00:00"
    )


def act(current: Revision, action: str) -> Revision:
    """One thing that somebody may try at any time."""
    state = current.models.get("m")
    rollout = state.rollout if state else None
    rollout_id, step = (rollout.id, rollout.step) if rollout else ("gone", 0)
    try:
        if action.startswith("begin"):
            return follow(current, transitions.begin(current, "m", version(int(action[-1])), POLICY, action))
        if action == "advance":
            step = min(step + 1, len(POLICY.weights) - 2)
            return follow(current, transitions.advance(current, "m", rollout_id, step, [], None))
        if action == "promote":
            return follow(current, transitions.promote(current, "m", rollout_id))
        if action == "undo":
            return follow(current, transitions.undo(current, "m", rollout_id))
        return follow(current, transitions.go_back(current, "m", None))
    except (RolloutBusy, NotFound):
        return current


ACTIONS = st.sampled_from(["begin1", "begin2", "begin3", "advance", "promote", "undo", "back"])


@PROPERTY
@given(st.lists(ACTIONS, max_size=12))
def test_whoever_acts_in_whatever_order_the_state_is_consistent(story: list[str]):
    """Weights add up, a split has an owner, nobody's second try changes anything, and the ledger accounts for 100 %."""
    ledger = [first_revision()]
    for action in story:
        ledger.append(act(ledger[-1], action))
        state = ledger[-1].models.get("m")
        if state:
            assert len(state.versions) == 1 or state.rollout is not None
            assert sum(served.weight for served in state.versions) == pytest.approx(100)
    written = [one for before, one in pairwise(ledger) if one is not before]
    found = list(spans(written))
    for revision in written:
        live = [span for span in found if span.begin <= revision.created_at and revision.created_at < (span.end or "9")]
        assert sum(span.weight for span in live) == pytest.approx(100)


def test_two_rollouts_of_one_model_cannot_run_together():
    """The second is refused by name; the same one again is not a second."""
    serving = act(first_revision(), "begin1")
    going = act(serving, "begin2")
    with pytest.raises(RolloutBusy, match="version 2 is at 1 %"):
        transitions.begin(going, "m", version(3), POLICY, "third")
    assert transitions.begin(going, "m", version(2), POLICY, "again") is None
    assert transitions.begin(going, "other", version(3), POLICY, "of another model") is not None


def test_late_decisions_of_a_rollout_that_is_over_change_nothing():
    """A replica that was away decides about what somebody has ended meanwhile."""
    going = act(act(first_revision(), "begin1"), "begin2")
    over = act(going, "back")
    for late in (
        transitions.promote(over, "m", "begin2"),
        transitions.undo(over, "m", "begin2"),
        transitions.advance(over, "m", "begin2", 1, [], None),
    ):
        assert late is None


def test_going_back_by_name_ends_a_rollout():
    """To any version, while a canary has its share: the canary is out, what served stays warm."""
    going = act(act(first_revision(), "begin1"), "begin2")
    models = transitions.go_back(going, "m", version(7))
    assert models
    state = models["m"]
    assert [served.version for served in state.versions] == ["7"]
    assert state.previous
    assert state.previous.version == "1"
    assert state.rollout is None


def test_history_tells_weights_times_and_evidence(store: Store, monkeypatch: pytest.MonkeyPatch):
    """A rollout that was rolled back, as the table and as JSON; what never served is no way back."""
    endpoint = f"test-{uuid4().hex[:8]}"
    story: list[tuple[str, Decision]] = [
        ("begin1", Decision(model="m", action="switch", version="1")),
        ("begin2", Decision(model="m", action="start", version="2", rollout_id="begin2")),
        ("undo", Decision(model="m", action="roll_back", version="2", rollout_id="begin2", reasons=["too slow"])),
    ]
    for action, decision in story:

        def change(current: Revision, action: str = action) -> dict[str, ModelState] | None:
            return act(current, action).models

        propose_revision(store, endpoint, change, reason=decision.action, author="somebody", decision=decision)
    found = history(store, endpoint, "m")
    assert [(span.version, span.weight, span.revision) for span in found] == [
        ("1", 100, 1),
        ("1", 99, 2),
        ("2", 1, 2),
        ("1", 100, 3),
    ]
    assert [span.end is None for span in found] == [False, False, False, True]
    assert found[-1].decision
    assert found[-1].decision.reasons == ["too slow"]
    assert earlier_version(store, endpoint, "m", "1").artifact == version(1).artifact
    with pytest.raises(NotFound, match="these did: 1"):
        earlier_version(store, endpoint, "m", "2")
    with pytest.raises(NotFound, match="never served a model 'n'"):
        history(store, endpoint, "n")
    told = CliRunner().invoke(app, ["history", "m", "--endpoint", endpoint, "--json"])
    assert [span["weight"] for span in json.loads(told.stdout)] == [100, 99, 1, 100]
    told = CliRunner().invoke(app, ["history", "m", "--endpoint", endpoint])
    assert "somebody" in told.stdout
    assert "now" in told.stdout
