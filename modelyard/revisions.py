"""What an endpoint should serve: numbered documents in the bucket, each put create-only.

    endpoints/<name>/revisions/000000000042.json   the highest number is the desired state; the list is the ledger
    endpoints/<name>/replicas/<replica>.json       what each running endpoint has reached

Rollout writes revisions, the endpoint follows them; neither needs the other to be alive. While a rollout is under way
the endpoint writes them too: each step of it is a revision (`modelyard.transitions` has what may follow what).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from typing import Literal

from pydantic import Field, model_validator

from modelyard.artifacts import ArtifactRef, Frozen
from modelyard.errors import LostRace
from modelyard.gates import Check, RolloutPolicy, StepCounts
from modelyard.storage import Store

PROPOSAL_TRIES = 8
PARALLEL_READS = 8
APPROVAL = "a person's approval"  # what a rollout waits for that has all else


class ServedVersion(Frozen):
    """One version of a model as the endpoint serves it.

    Attributes:
        version: number of the version in the registry.
        artifact: the compressed model, with every form and the fitted transform.
        form: which of its forms answers (``int8``, ``float``).
        verdict: the verdict with the golden rows that the endpoint probes the version with.
        weight: share of the requests, in percent.
        flow_run_id: the run that rolled it out.
    """

    version: str
    artifact: ArtifactRef
    form: str
    verdict: ArtifactRef
    weight: float = Field(100.0, ge=0, le=100)
    flow_run_id: str | None = None
    mlflow_run_id: str | None = None


class RolloutUnderWay(Frozen):
    """A rollout that is not decided yet: what the endpoint needs to go on with it, whoever else dies.

    Attributes:
        id: of the rollout, the same in all its revisions.
        policy: what its owner decided.
        step: index of the canary's weight in ``policy.weights``.
        started_at: time of its first revision, ISO 8601.
        slow_seconds: from where on an answer counts as slow; None until it is fixed.
        counts: of the steps before this one, all replicas together.
        approved_by: the person who agreed to its promotion, where the policy wants one.
    """

    id: str
    policy: RolloutPolicy
    step: int = Field(0, ge=0)
    started_at: str
    slow_seconds: float | None = None
    counts: list[StepCounts] = Field(default_factory=list)
    approved_by: str = ""


class ModelState(Frozen):
    """The versions of one model that answer requests, and the one kept ready for going back.

    While a rollout is under way there are two: the stable version, then the canary.
    """

    versions: list[ServedVersion] = Field(min_length=1)
    previous: ServedVersion | None = None
    rollout: RolloutUnderWay | None = None

    @model_validator(mode="after")
    def _weights_add_up(self) -> ModelState:
        total = sum(version.weight for version in self.versions)
        if abs(total - 100) > 1e-6:
            raise ValueError(f"weights add up to {total}, not to 100")
        if self.rollout and len(self.versions) != 2:
            raise ValueError(f"a rollout has a stable version and a canary, not {len(self.versions)} versions")
        return self

    @property
    def stable(self) -> ServedVersion:
        """What serves, or what a canary is held against."""
        return self.versions[0]


class Decision(Frozen):
    """Why a revision was written, where it belongs to one model: the evidence, for ever.

    Attributes:
        action: ``start``, ``advance``, ``approve`` (a person agreed), ``promote``, ``roll_back`` (the gates said no, or the
            person), ``give_up`` (the canary could not be served at all), ``switch`` (all at once), ``return`` (a person
            went back), ``restore`` (a switch failed).
        version: the version it is about.
        rollout_id: see `RolloutUnderWay`; None outside of one.
        reasons: sentences for people.
        checks: the gates, with values and limits.
        counts: what they were computed from.
    """

    model: str
    action: Literal["start", "advance", "approve", "promote", "roll_back", "give_up", "switch", "return", "restore"]
    version: str
    rollout_id: str | None = None
    reasons: list[str] = Field(default_factory=list)
    checks: list[Check] = Field(default_factory=list)
    counts: list[StepCounts] = Field(default_factory=list)


class Revision(Frozen):
    """One desired state of an endpoint: every model it serves."""

    number: int = Field(ge=0)
    models: dict[str, ModelState] = Field(default_factory=dict)
    reason: str
    author: str
    created_at: str
    decision: Decision | None = None


class ReplicaStatus(Frozen):
    """What one running endpoint has reached, and what stopped it from getting further.

    Attributes:
        revision: the last revision it took over in full.
        attempted: the last one it tried.
        error: why ``attempted`` was not taken over; None when all is well.
        counts: of each rollout under way, by its id: what this replica has counted in its present step.
        loading: versions of a newer revision that are being fetched, loaded and probed now.
    """

    replica: str
    revision: int
    attempted: int
    error: str | None = None
    serving: dict[str, list[str]] = Field(default_factory=dict, description="model -> versions")
    counts: dict[str, StepCounts] = Field(default_factory=dict)
    loading: list[str] = Field(default_factory=list)


def first_revision() -> Revision:
    """What an endpoint serves before anything was rolled out: nothing."""
    return Revision(number=0, reason="nothing rolled out yet", author="modelyard", created_at=_now())


def latest_revision(store: Store, endpoint: str, after: int = 0) -> Revision | None:
    """The desired state, or None where it is not newer than revision ``after``."""
    after_key = f"{after:012d}.json" if after else ""
    newest = store.last(_folder(store, endpoint), after=after_key)
    return Revision.model_validate_json(store.get(newest.uri)) if newest else None


def read_revision(store: Store, endpoint: str, number: int) -> Revision:
    """One entry of the ledger.

    Raises:
        NotFound: there is no such revision.
    """
    return Revision.model_validate_json(store.get(f"{_folder(store, endpoint)}/{number:012d}.json"))


def revisions_since(store: Store, endpoint: str, number: int = 0) -> Iterator[Revision]:
    """Every entry of the ledger after a number, oldest first."""
    newest = latest_revision(store, endpoint, number)
    if newest:
        with ThreadPoolExecutor(PARALLEL_READS) as pool:
            yield from pool.map(partial(read_revision, store, endpoint), range(number + 1, newest.number))
        yield newest


def propose_revision(
    store: Store,
    endpoint: str,
    change: Callable[[Revision], dict[str, ModelState] | None],
    *,
    reason: str,
    author: str,
    decision: Decision | None = None,
) -> Revision:
    """Write the next revision.

    Args:
        change: from the newest revision to the models of the next one, or None for "already so". It may be
            called again when another writer was faster, so it must not have effects.

    Returns:
        The revision now in force: the new one, or the newest where nothing had to change.

    Raises:
        LostRace: other writers won `PROPOSAL_TRIES` times in a row.
    """
    for turn in range(PROPOSAL_TRIES):
        current = latest_revision(store, endpoint) or first_revision()
        models = change(current)
        if models is None:
            return current
        proposal = Revision(
            number=current.number + 1,
            models=models,
            reason=reason,
            author=author,
            created_at=_now(),
            decision=decision,
        )
        if _write(store, endpoint, proposal):
            return proposal
        time.sleep(0.05 * 2**turn)
    raise LostRace(f"endpoint {endpoint!r}: {PROPOSAL_TRIES} other revisions came first")


def replica_statuses(store: Store, endpoint: str) -> list[ReplicaStatus]:
    """What every replica of an endpoint last said, those included that have ended since."""
    found = store.list(f"{store.root}/endpoints/{endpoint}/replicas")
    return [ReplicaStatus.model_validate_json(store.get(info.uri)) for info in found]


def publish_status(store: Store, endpoint: str, status: ReplicaStatus) -> None:
    store.put(f"{store.root}/endpoints/{endpoint}/replicas/{status.replica}.json", status.model_dump_json().encode())


def _write(store: Store, endpoint: str, revision: Revision) -> bool:
    uri = f"{_folder(store, endpoint)}/{revision.number:012d}.json"
    body = revision.model_dump_json(indent=1).encode()
    # After a lost reply the retried put finds its own document: the same bytes mean that it won.
    return store.put_new(uri, body) or store.get(uri) == body


def _folder(store: Store, endpoint: str) -> str:
    return f"{store.root}/endpoints/{endpoint}/revisions"


def _now() -> str:
    return datetime.now(UTC).isoformat()
