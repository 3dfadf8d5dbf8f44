"""The ledger of what an endpoint should serve."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest
from pydantic import ValidationError

from modelyard.artifacts import ArtifactRef
from modelyard.revisions import (
    ModelState,
    Revision,
    ServedVersion,
    latest_revision,
    propose_revision,
    read_revision,
)
from modelyard.storage import Store

REF = ArtifactRef(uri="s3://modelyard/artifacts/compressed/x", digest="0" * 64, kind="compressed")


def version(number: int, weight: float = 100.0) -> ServedVersion:
    return ServedVersion(version=str(number), artifact=REF, form="int8", verdict=REF, weight=weight)


@pytest.fixture
def endpoint() -> str:
    return f"test-{uuid4().hex[:12]}"


def test_no_revision_before_the_first(store: Store, endpoint: str):
    """An endpoint nobody rolled anything out to has no desired state."""
    assert latest_revision(store, endpoint) is None


def test_racing_proposals_all_enter_the_ledger_once(store: Store, endpoint: str):
    """Eight writers at once: every model is in the newest revision, numbers have no gap, nothing was overwritten."""

    def add(number: int) -> Revision:
        def change(current: Revision) -> dict[str, ModelState]:
            return {**current.models, f"model-{number}": ModelState(versions=[version(number)])}

        return propose_revision(store, endpoint, change, reason="race", author=str(number))

    with ThreadPoolExecutor(4) as pool:
        written = list(pool.map(add, range(4)))
    assert sorted(revision.number for revision in written) == [1, 2, 3, 4]
    newest = latest_revision(store, endpoint)
    assert newest is not None
    assert sorted(newest.models) == [f"model-{number}" for number in range(4)]
    assert all(read_revision(store, endpoint, revision.number) == revision for revision in written)


def test_only_what_is_newer_is_found(store: Store, endpoint: str):
    """An endpoint that has reached a revision asks for newer ones, and is told there is none."""
    revision = propose_revision(
        store, endpoint, lambda _: {"m": ModelState(versions=[version(1)])}, reason="first", author="test"
    )
    assert latest_revision(store, endpoint, after=revision.number - 1) == revision
    assert latest_revision(store, endpoint, after=revision.number) is None


def test_proposal_of_what_is_already_so_writes_nothing(store: Store, endpoint: str):
    """A change that returns None leaves the ledger as it is."""
    first = propose_revision(
        store, endpoint, lambda _: {"m": ModelState(versions=[version(1)])}, reason="first", author="test"
    )
    assert propose_revision(store, endpoint, lambda _: None, reason="same", author="test") == first


def test_weights_must_add_up_to_a_hundred():
    """A document that would lose or double traffic cannot be written."""
    with pytest.raises(ValidationError, match="add up"):
        ModelState(versions=[version(1, 50), version(2, 40)])
    assert ModelState(versions=[version(1, 99), version(2, 1)])
