"""How a rollout ended, read from the ledger alone."""

from __future__ import annotations

import pytest

from modelyard.errors import RolledBack, RolloutFailed
from modelyard.revisions import Decision, Revision, first_revision
from modelyard.rollout.watch import concluded, end_of
from tests.test_ledger import act


def story(*actions: str) -> list[Revision]:
    found = [first_revision()]
    for action in actions:
        found.append(act(found[-1], action))
    return found


@pytest.mark.parametrize("last", ["promote", "undo", "back"])
def test_a_rollout_ends_where_it_is_named_no_more(last: str):
    """By promotion, by the gates, by a hand; what came before its beginning is no end of it."""
    ledger = story("begin1", "back", "begin2", "advance", last, "begin3")
    begun = next(one.number for one in ledger if one.models and one.models["m"].rollout)
    end = end_of(ledger, "m", "begin2")
    assert end is not None
    assert end.number == begun + 2
    assert end_of(ledger[: begun + 1], "m", "begin2") is None
    assert end_of(ledger, "m", "never begun") is None
    assert end_of([end], "m", "begin2", is_under_way=True) == end


@pytest.mark.parametrize(
    ("action", "kind", "words"),
    [
        ("roll_back", RolledBack, "too slow"),
        ("give_up", RolloutFailed, "too slow"),
        ("return", RolledBack, "went back"),
    ],
)
def test_an_end_that_is_none_is_an_error_with_its_reasons(action: str, kind: type[Exception], words: str):
    """The gates' no, a canary that cannot be served and a person's way back are told apart."""
    decision = Decision.model_validate({"model": "m", "action": action, "version": "2", "reasons": ["too slow"]})
    with pytest.raises(kind, match=words):
        concluded(story("begin1")[-1].model_copy(update={"decision": decision}), "m")
