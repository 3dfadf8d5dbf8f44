"""Trials in the bucket."""

from __future__ import annotations

from modelyard.artifacts import ArtifactRef
from modelyard.settings import Settings
from modelyard.storage import Store
from modelyard.tune import Ask, Told
from modelyard.tune.trials import Trials, told_by
from tests.workbench import ORIGIN, own_catalog

DATASET = ArtifactRef(uri="s3://a/b", digest="0" * 64, kind="dataset")


def test_a_trial_is_found_as_it_was_meant_and_as_it_ended(settings: Settings, store: Store):
    """Written down before it is tried: who comes second takes up the first one's, with its bar. Another study has its
    own; one that is told again keeps what stands."""
    catalog = own_catalog(settings)
    trials = Trials(catalog=catalog, study={"tune": 1}, inputs={"dataset": DATASET})
    assert trials.asked(0) is None
    mine = Ask(number=0, parameters={"train.model.hidden_sizes": [64, 32]}, bar={2: 0.5})
    assert trials.keep(mine) == mine
    assert trials.keep(mine.model_copy(update={"parameters": {}})) == mine
    assert trials.asked(0) == mine
    assert trials.found(0) is None
    told = Told(outcome="pruned", value=0.4, values=[0.3, 0.4], seconds=3.5, reason="behind")
    trials.commit(mine, told, None, ORIGIN)
    found = trials.found(0)
    assert found
    assert told_by(found) == told
    assert trials.asked(0) == mine
    late = trials.commit(mine, told.model_copy(update={"outcome": "failed"}), None, ORIGIN)
    assert told_by(late) == told
    assert Trials(catalog=catalog, study={"tune": 2}, inputs={"dataset": DATASET}).asked(0) is None
