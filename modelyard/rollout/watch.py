"""Watching a rollout that the endpoint carries out: how it stands, and how it ended.

The end is read from the ledger, never from the endpoint: a rollout whose endpoint is being restarted is still the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from modelyard.artifacts import Frozen
from modelyard.errors import ApprovalNeeded, EndpointUnavailable, RolledBack, RolloutFailed, RolloutWaits
from modelyard.gates import Check, StepCounts
from modelyard.revisions import APPROVAL, Decision, Revision, RolloutUnderWay, revisions_since
from modelyard.rollout.config import RolloutConfig
from modelyard.rollout.endpoint import EndpointClient
from modelyard.settings import Settings
from modelyard.storage import Store

POLL_SECONDS = 0.2
SPARE_SECONDS = 30.0  # beyond what the policy grants its steps


class Look(Frozen):
    """A rollout at one moment.

    Attributes:
        seconds: since one began to watch.
        weight: of the canary, in percent.
        waits_for: what the step lacks, as a sentence.
    """

    seconds: float
    canary: str
    step: int
    num_steps: int
    weight: float
    waits_for: str
    checks: list[Check]
    counts: list[StepCounts]
    slow_seconds: float | None
    upper_error_rate: float


Watcher = Callable[[Look], None]


def ignore(_look: Look) -> None:
    """A watcher that nobody needs."""


def watch(
    store: Store,
    settings: Settings,
    endpoint: EndpointClient,
    model_name: str,
    revision: Revision,
    config: RolloutConfig,
    watcher: Watcher,
) -> Revision:
    """Stay with the rollout that is under way in a revision until it is decided.

    Returns:
        The revision that promoted the canary.

    Raises:
        RolledBack: the gates said no, or a person did.
        RolloutFailed: the endpoint could not serve the canary at all.
        RolloutWaits: it is not decided within what its policy grants.
        ApprovalNeeded: only a person's approval is missing; `modelyard.rollout.approval` takes it.
        EndpointUnavailable: the endpoint has been away for too long.
    """
    rollout = revision.models[model_name].rollout
    assert rollout
    policy, began = rollout.policy, time.monotonic()
    bound = policy.load_seconds + len(policy.weights) * policy.max_seconds + SPARE_SECONDS
    reached, seen_at = revision.number, began
    while True:
        newer = list(revisions_since(store, settings.endpoint_name, reached))
        if end := end_of(newer, model_name, rollout.id, is_under_way=True):
            return concluded(end, model_name)
        reached = newer[-1].number if newer else reached
        look = _look(endpoint, model_name, rollout, time.monotonic() - began)
        now = time.monotonic()
        if look:
            seen_at = now
            watcher(look)
        if look and look.waits_for == APPROVAL:
            raise ApprovalNeeded(f"{model_name} version {look.canary}", [check.row() for check in look.checks])
        if now - seen_at > max(config.away_seconds, policy.load_seconds):
            raise EndpointUnavailable(
                f"endpoint {endpoint.url} has said nothing about its rollout for {now - seen_at:.0f} s"
            )
        if now - began > bound:
            raise RolloutWaits(_waiting_sentence(model_name, look, bound))
        time.sleep(POLL_SECONDS)


def end_of(
    revisions: Iterable[Revision], model_name: str, rollout_id: str, *, is_under_way: bool = False
) -> Revision | None:
    """The first revision that knows no more of a rollout, once one did; None where there is none yet.

    Args:
        is_under_way: whether the revision before these has the rollout.
    """
    for revision in revisions:
        state = revision.models.get(model_name)
        if state and state.rollout and state.rollout.id == rollout_id:
            is_under_way = True
        elif is_under_way:
            return revision
    return None


def concluded(revision: Revision, model_name: str) -> Revision:
    """The revision that ended a rollout, where it ended well.

    Raises:
        RolledBack, RolloutFailed: it did not.
    """
    decision = revision.decision
    assert decision
    subject = f"{model_name} version {decision.version}"
    if decision.action == "promote":
        return revision
    if decision.action == "give_up":
        raise RolloutFailed(f"the endpoint could not serve {subject}: {'; '.join(decision.reasons)}")
    if decision.action == "return":
        raise RolledBack(model_name, [f"revision {revision.number} by {revision.author} went back"])
    raise RolledBack(subject, decision.reasons, evidence_table(decision))


def evidence_table(decision: Decision) -> list[dict[str, object]]:
    """The gates of a decision, as rows for a table."""
    return [check.row() for check in decision.checks]


def _look(endpoint: EndpointClient, model_name: str, rollout: RolloutUnderWay, seconds: float) -> Look | None:
    """How the endpoint says it stands; None while it is away, or has not begun."""
    try:
        page: dict[str, Any] = endpoint.page()
    except EndpointUnavailable:
        return None
    said = page.get("models", {}).get(model_name, {}).get("rollout")
    if not said or said["id"] != rollout.id:
        return None
    return Look(
        seconds=seconds,
        num_steps=len(rollout.policy.weights),
        **{key: said[key] for key in Look.model_fields if key in said and key != "seconds"},
    )


def _waiting_sentence(model_name: str, look: Look | None, bound: float) -> str:
    stands = f"at {look.weight:g} %: {look.waits_for}" if look else "not begun"
    return (
        f"after {bound:.0f} s the rollout of {model_name} is {stands}; the endpoint goes on with it when there are"
        f" requests, `modelyard rollback {model_name}` ends it"
    )
