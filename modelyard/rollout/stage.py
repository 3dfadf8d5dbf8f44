"""Rollout and rollback. Neither is cached: each compares what is with what should be and does what is missing.

The order makes it safe to die anywhere: the version is registered, then a revision is written (from here on the
endpoint goes on by itself: it takes the canary in, judges it, and writes each further revision), and only when the
endpoint has promoted it does the registry call it champion. What served before keeps serving until then, and stays
loaded for going back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from functools import partial
from uuid import uuid4

from modelyard import transitions
from modelyard.artifacts import ArtifactRef, Frozen
from modelyard.catalog import Catalog, Origin
from modelyard.errors import NotFound, Refused, RolloutBusy
from modelyard.ledger import earlier_version
from modelyard.model_package import PACKAGE_FILE, PackageSpec
from modelyard.revisions import (
    Decision,
    Revision,
    ServedVersion,
    first_revision,
    latest_revision,
    propose_revision,
    read_revision,
    revisions_since,
)
from modelyard.rollout.config import RolloutConfig
from modelyard.rollout.endpoint import EndpointClient
from modelyard.rollout.watch import Watcher, concluded, end_of, ignore, watch
from modelyard.settings import Settings
from modelyard.signing.sign import sign_release
from modelyard.storage import Store
from modelyard.tracking import Tracker

LOOK_BACK = 100  # revisions among which a retry looks for the end of its own rollout


class Release(Frozen):
    """What a rollout or rollback left behind: the version in force, and whether anything had to change.

    Attributes:
        before: the newest revision when it began; what came after it is its story.
    """

    model_name: str
    version: str
    artifact: ArtifactRef
    form: str
    revision: int
    endpoint_url: str
    changed: bool
    before: int = 0


def rollout(
    catalog: Catalog,
    tracker: Tracker,
    settings: Settings,
    *,
    model_name: str,
    candidate: ArtifactRef,
    verdict: ArtifactRef,
    config: RolloutConfig,
    origin: Origin,
    watcher: Watcher = ignore,
    sets_aliases: bool = True,
) -> Release:
    """Register a judged candidate and have the endpoint roll it out.

    Args:
        watcher: called with each new look at the rollout, see `modelyard.rollout.watch`.
        sets_aliases: whether the registry's aliases follow this endpoint.

    Raises:
        Refused: the verdict is not a pass, or is about another model.
        RolledBack: the gates said no; what served before serves on. Carries the evidence.
        RolloutBusy: another rollout of the model is not decided yet.
        RolloutFailed: the endpoint could not serve it; what served before serves on, and the ledger says so.
        RolloutWaits: it holds for want of requests; the endpoint goes on with it.
        ApprovalNeeded: the same, for want of a person's approval.
        EndpointUnavailable: the endpoint is away; the revision stands, and a retry goes on from there.
    """
    _require_pass(catalog, candidate, verdict)
    store, name = catalog.store, settings.endpoint_name
    current = latest_revision(store, name) or first_revision()
    _require_free(current, model_name, candidate)
    sign_release(store, settings, candidate, verdict)
    version = tracker.register(model_name, candidate, verdict, catalog.manifest(candidate), origin)
    call = partial(tracker.set_alias, model_name) if sets_aliases else _no_alias
    call("challenger", version)
    form = config.form or _default_form(catalog, candidate)
    newcomer = _newcomer(version, form, candidate, verdict, origin)
    rollout_id = _rollout_id(candidate, origin)
    lately = list(revisions_since(store, name, max(0, current.number - LOOK_BACK)))
    if end := end_of(lately, model_name, rollout_id):
        # A retry, after the endpoint has decided without us.
        revision = concluded(end, model_name)
        call("champion", version)
        return _release(settings, model_name, newcomer, revision, first_revision())
    before, revision = _begin(store, settings, model_name, newcomer, config, rollout_id, origin)
    if revision.number == before.number and not revision.models[model_name].rollout:
        # It is so already, by an earlier try perhaps, which could not see the endpoint refuse.
        mine = [one for one in lately if one.models.get(model_name) == revision.models[model_name]]
        before, revision = _own(store, name, mine, model_name, "switch", origin) or (before, revision)
    state = revision.models[model_name]
    with EndpointClient(settings) as endpoint:
        endpoint.notify(revision.number)
        if state.rollout:
            revision = watch(store, settings, endpoint, model_name, revision, config, watcher)
        else:
            endpoint.take_over(store, model_name, revision, before, config.takeover_seconds)
    call("champion", version)
    return _release(settings, model_name, newcomer, revision, before)


def rollback(
    catalog: Catalog,
    tracker: Tracker,
    settings: Settings,
    *,
    model_name: str,
    config: RolloutConfig,
    origin: Origin,
    version: str = "",
    sets_aliases: bool = True,
) -> Release:
    """Go back to an earlier version, and end a rollout that is under way.

    Args:
        version: any version that served all requests at some time; empty: the stable one while a rollout is under way,
            else the one before the present.
        sets_aliases: whether the registry's champion follows this endpoint.

    Raises:
        NotFound: the endpoint does not serve the model, or there is nothing to go back to.
        RolloutFailed: the endpoint did not take the earlier version; the present one serves on.
    """
    store = catalog.store
    target = earlier_version(store, settings.endpoint_name, model_name, version) if version else None
    if target:
        _require_kept(catalog, settings, model_name, target)
    newest = latest_revision(store, settings.endpoint_name) or first_revision()
    lately = revisions_since(store, settings.endpoint_name, max(0, newest.number - LOOK_BACK))
    before, revision = _own(store, settings.endpoint_name, lately, model_name, "return", origin) or _propose(
        store,
        settings,
        lambda current: transitions.go_back(current, model_name, target),
        Decision(model=model_name, action="return", version=version or "the one before"),
        origin,
    )
    with EndpointClient(settings) as endpoint:
        endpoint.notify(revision.number)
        endpoint.take_over(store, model_name, revision, before, config.takeover_seconds)
    now = revision.models[model_name].stable
    if sets_aliases:
        tracker.set_alias(model_name, "champion", now.version)
    return _release(settings, model_name, now, revision, before)


def _own(
    store: Store, endpoint: str, lately: Iterable[Revision], model_name: str, action: str, origin: Origin
) -> tuple[Revision, Revision] | None:
    """What was before a revision that an earlier try of this flow run has written, and that revision: going back by one is
    not done twice, and a switch that fails at the second try is restored too."""
    for revision in lately:
        said = revision.decision
        is_own = bool(origin.flow_run_id) and revision.author == origin.flow_run_id
        if is_own and said and (said.model, said.action) == (model_name, action):
            before = read_revision(store, endpoint, revision.number - 1) if revision.number > 1 else first_revision()
            return before, revision
    return None


def _no_alias(_alias: str, _version: str) -> None:
    """The registry speaks of another endpoint."""


def _release(
    settings: Settings, model_name: str, served: ServedVersion, revision: Revision, before: Revision
) -> Release:
    return Release(
        model_name=model_name,
        version=served.version,
        artifact=served.artifact,
        form=served.form,
        revision=revision.number,
        endpoint_url=settings.serving_url,
        changed=revision.number != before.number,
        before=before.number,
    )


def _rollout_id(candidate: ArtifactRef, origin: Origin) -> str:
    """The same for each try of a flow run, so that a retry does not begin what is decided already."""
    if not origin.flow_run_id:
        return uuid4().hex[:16]
    return hashlib.sha256(f"{origin.flow_run_id} {candidate.digest}".encode()).hexdigest()[:16]


def _begin(
    store: Store,
    settings: Settings,
    model_name: str,
    newcomer: ServedVersion,
    config: RolloutConfig,
    rollout_id: str,
    origin: Origin,
) -> tuple[Revision, Revision]:
    """The newest revision, and the one that begins the rollout; the same where it began, or is over, already."""
    change = partial(
        transitions.begin, model=model_name, newcomer=newcomer, policy=config.policy, rollout_id=rollout_id
    )
    current = latest_revision(store, settings.endpoint_name) or first_revision()
    is_judged = model_name in current.models and config.policy.kind != "all_at_once"
    decision = Decision(
        model=model_name,
        action="start" if is_judged else "switch",
        version=newcomer.version,
        rollout_id=rollout_id if is_judged else None,
    )
    return _propose(store, settings, change, decision, origin)


def _propose(
    store: Store,
    settings: Settings,
    change: Callable[[Revision], transitions.Models | None],
    decision: Decision,
    origin: Origin,
) -> tuple[Revision, Revision]:
    """The revision that a change started from, and the one it led to: the same where nothing had to change."""
    seen = [first_revision()]

    def remember(current: Revision) -> transitions.Models | None:
        seen[0] = current
        return change(current)

    words = {"start": "roll out", "switch": "roll out", "return": "roll back"}
    revision = propose_revision(
        store,
        settings.endpoint_name,
        remember,
        reason=f"{words[decision.action]} {decision.model} version {decision.version}",
        author=origin.flow_run_id or "modelyard",
        decision=decision,
    )
    return seen[0], revision


def _newcomer(version: str, form: str, candidate: ArtifactRef, verdict: ArtifactRef, origin: Origin) -> ServedVersion:
    return ServedVersion(
        version=version,
        artifact=candidate,
        form=form,
        verdict=verdict,
        flow_run_id=origin.flow_run_id,
        mlflow_run_id=origin.mlflow_run_id,
    )


def _require_pass(catalog: Catalog, candidate: ArtifactRef, verdict: ArtifactRef) -> None:
    judged = catalog.manifest(verdict).content
    if judged.inputs.get("candidate") != candidate.digest:
        raise Refused(str(candidate), [f"{verdict} judged another model"])
    if not judged.facts.get("passed"):
        raise Refused(str(candidate), judged.facts.get("reasons") or [f"{verdict} is not a pass"])


def _require_kept(catalog: Catalog, settings: Settings, model_name: str, target: ServedVersion) -> None:
    """Before anything is written: the bucket still has the version, unless the endpoint has it loaded.

    Raises:
        NotFound: it was deleted.
    """
    newest = latest_revision(catalog.store, settings.endpoint_name) or first_revision()
    state = newest.models.get(model_name)
    loaded = [*state.versions, *([state.previous] if state.previous else [])] if state else []
    if any(transitions.is_same(target, one) for one in loaded):
        return
    for what, ref in (("package", target.artifact), ("verdict", target.verdict)):
        try:
            catalog.manifest(ref)
        except NotFound as gone:
            raise NotFound(
                f"{model_name} version {target.version} served once, and its {what} was deleted since ({gone});"
                " roll out a newer version, or go back to another one"
            ) from None


def _require_free(current: Revision, model_name: str, candidate: ArtifactRef) -> None:
    """Before anything is registered: no other rollout of the model is under way."""
    state = current.models.get(model_name)
    if state and state.rollout and state.versions[1].artifact.digest != candidate.digest:
        raise RolloutBusy(transitions.busy_sentence(model_name, state))


def _default_form(catalog: Catalog, candidate: ArtifactRef) -> str:
    return PackageSpec.model_validate_json(catalog.read(candidate, PACKAGE_FILE)).default_form
