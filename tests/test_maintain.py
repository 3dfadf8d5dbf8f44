"""Housekeeping: what nothing reaches goes, what anything reaches stays."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from modelyard.artifacts import ArtifactKind, ArtifactRef
from modelyard.catalog import Attempt, Catalog, Origin, Work
from modelyard.errors import NotFound
from modelyard.maintain import ABANDONED_AFTER, RETENTION, plan_sweep, sweep
from modelyard.revisions import ModelState, ServedVersion, propose_revision
from modelyard.settings import Settings
from modelyard.storage import Store

LATER = datetime.now(UTC) + timedelta(days=365)


@pytest.fixture
def catalog(store: Store, settings: Settings) -> Iterator[Catalog]:
    """A bucket of its own, so that a sweep meets only what the test put there."""
    own = Store(settings.model_copy(update={"bucket": f"sweep-{uuid4().hex[:8]}"}))
    own.control.create_bucket()
    yield Catalog(own)
    own.delete(info.uri for info in own.list(own.root))


def make(catalog: Catalog, kind: ArtifactKind, **inputs: ArtifactRef) -> ArtifactRef:
    work = Work(kind=kind, config={"salt": uuid4().hex}, inputs=inputs, code_version="1")

    def build(attempt: Attempt) -> None:
        attempt.add_bytes("file", uuid4().bytes)

    return catalog.produce(work, build, Origin()).ref


def test_what_a_registered_version_was_made_from_stays(catalog: Catalog):
    """Reachability goes through manifests to the data; only what no version was made from is removed."""
    snapshot = make(catalog, "snapshot")
    dataset = make(catalog, "dataset", snapshot=snapshot)
    model = make(catalog, "model", dataset=dataset)
    orphan = make(catalog, "model", dataset=dataset)
    plan = plan_sweep(catalog, [model], now=LATER)
    assert [removal.uri for removal in plan.artifacts] == [orphan.uri]
    sweep(catalog, plan)
    with pytest.raises(NotFound):
        catalog.resolve(orphan.digest)
    assert not list(catalog.store.list(orphan.uri))
    for ref in (snapshot, dataset, model):
        assert catalog.resolve(ref.digest) == ref
        catalog.read(ref, "file")


def test_what_any_revision_served_stays(catalog: Catalog):
    """The ledger of an endpoint keeps its artifacts, so that going back is always possible."""
    served, verdict = make(catalog, "compressed"), make(catalog, "verdict")
    version = ServedVersion(version="1", artifact=served, form="int8", verdict=verdict)
    propose_revision(
        catalog.store, "any", lambda _: {"m": ModelState(versions=[version])}, reason="test", author="test"
    )
    assert not plan_sweep(catalog, [], now=LATER).artifacts


def test_young_artifacts_stay(catalog: Catalog):
    """What nothing reaches yet may be on its way to be reached: its retention protects it."""
    make(catalog, "model")
    assert not plan_sweep(catalog, []).removals


def test_partitions_stay_as_long_as_a_data_set(catalog: Catalog, monkeypatch: pytest.MonkeyPatch):
    """Its files lie in them, though they are older than itself and nothing else names them."""
    monkeypatch.setitem(RETENTION, "partition", timedelta(days=1))
    used, orphan = make(catalog, "partition"), make(catalog, "partition")
    make(catalog, "dataset", partition=used)
    plan = plan_sweep(catalog, [], now=datetime.now(UTC) + timedelta(days=2))
    assert [removal.uri for removal in plan.artifacts] == [orphan.uri]


def test_planning_removes_nothing(catalog: Catalog):
    """A dry run is a plan, and a plan touches nothing."""
    orphan = make(catalog, "model")
    assert plan_sweep(catalog, [], now=LATER).artifacts
    assert catalog.resolve(orphan.digest) == orphan


def test_abandoned_attempts_go_and_the_winner_stays(catalog: Catalog):
    """Files of an attempt that no manifest names go once no attempt can still be writing them."""
    ref = make(catalog, "model")
    lost = f"{ref.uri}/attempts/feedbeef/file"
    unfinished = catalog.folder("dataset", "0" * 40) + "/attempts/feedbeef/file"
    for uri in (lost, unfinished):
        catalog.store.put(uri, b"half")
    soon = datetime.now(UTC) + ABANDONED_AFTER - timedelta(hours=1)
    assert not plan_sweep(catalog, [ref], now=soon).removals
    sweep(catalog, plan_sweep(catalog, [ref], now=soon + timedelta(hours=2)))
    assert not catalog.store.exists(lost)
    assert not catalog.store.exists(unfinished)
    catalog.read(ref, "file")


def test_checkpoints_of_an_unfinished_training_outlive_those_of_a_finished_one(catalog: Catalog):
    """A finished training needs its checkpoints no more; an unfinished one goes on from them next week."""
    done = make(catalog, "model")
    unfinished = catalog.folder("model", "1" * 40)
    for folder in (done.uri, unfinished):
        catalog.store.put(f"{folder}/checkpoints/000000000001.json", b"{}")
    plan = plan_sweep(catalog, [done], now=datetime.now(UTC) + timedelta(days=7))
    assert [removal.uri for removal in plan.leftovers] == [f"{done.uri}/checkpoints"]
