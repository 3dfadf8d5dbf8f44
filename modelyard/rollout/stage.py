"""Rollout and rollback. Neither is cached: each compares what is with what should be and does what is missing.

The order makes it safe to die anywhere: the version is registered, then a revision is written (from here on the
endpoint takes it over by itself), and only when the endpoint serves it does the registry call it champion. What served
before keeps serving until the new version has answered its golden rows, and stays loaded for going back.
"""

from __future__ import annotations

import logging

from modelyard.artifacts import ArtifactRef, Frozen
from modelyard.catalog import Catalog, Origin
from modelyard.errors import NotFound, Refused, RolloutFailed
from modelyard.model_package import PACKAGE_FILE, PackageSpec
from modelyard.revisions import ModelState, Revision, ServedVersion, propose_revision
from modelyard.rollout.config import RolloutConfig
from modelyard.rollout.endpoint import EndpointClient
from modelyard.settings import Settings
from modelyard.signing.sign import sign_release
from modelyard.tracking import Tracker

log = logging.getLogger(__name__)


class Release(Frozen):
    """What a rollout or rollback left behind: the version in force, and whether anything had to change."""

    model_name: str
    version: str
    artifact: ArtifactRef
    form: str
    revision: int
    endpoint_url: str
    changed: bool


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
) -> Release:
    """Register a judged candidate and have the endpoint take it over.

    Raises:
        Refused: the verdict is not a pass, or is about another model.
        RolloutFailed: the endpoint did not take it; what served before serves on, and the ledger says so.
        EndpointUnavailable: the endpoint is away; the revision stands, and a retry goes on from there.
    """
    _require_pass(catalog, candidate, verdict)
    sign_release(catalog.store, settings, candidate, verdict)
    version = tracker.register(model_name, candidate, verdict, catalog.manifest(candidate), origin)
    tracker.set_alias(model_name, "challenger", version)
    form = config.form or _default_form(catalog, candidate)
    newcomer = ServedVersion(
        version=version,
        artifact=candidate,
        form=form,
        verdict=verdict,
        flow_run_id=origin.flow_run_id,
        mlflow_run_id=origin.mlflow_run_id,
    )
    before = _Before()

    def change(current: Revision) -> dict[str, ModelState] | None:
        before.revision = current
        return _with_version(current, model_name, newcomer)

    revision = propose_revision(
        catalog.store,
        settings.endpoint_name,
        change,
        reason=f"roll out {model_name} version {version}",
        author=origin.flow_run_id or "modelyard",
    )
    changed = revision.number != before.number
    _take_over(catalog, settings, revision, before.revision, config.takeover_seconds)
    tracker.set_alias(model_name, "champion", version)
    return Release(
        model_name=model_name,
        version=version,
        artifact=candidate,
        form=form,
        revision=revision.number,
        endpoint_url=settings.serving_url,
        changed=changed,
    )


def rollback(
    catalog: Catalog, tracker: Tracker, settings: Settings, *, model_name: str, config: RolloutConfig, origin: Origin
) -> Release:
    """Go back to the version that served before the present one.

    Raises:
        NotFound: the endpoint does not serve the model, or there is nothing to go back to.
        RolloutFailed: the endpoint did not take the earlier version; the present one serves on.
    """
    before = _Before()

    def change(current: Revision) -> dict[str, ModelState] | None:
        before.revision = current
        return _with_previous(current, model_name)

    revision = propose_revision(
        catalog.store,
        settings.endpoint_name,
        change,
        reason=f"roll back {model_name}",
        author=origin.flow_run_id or "modelyard",
    )
    _take_over(catalog, settings, revision, before.revision, config.takeover_seconds)
    now = revision.models[model_name].versions[0]
    tracker.set_alias(model_name, "champion", now.version)
    return Release(
        model_name=model_name,
        version=now.version,
        artifact=now.artifact,
        form=now.form,
        revision=revision.number,
        endpoint_url=settings.serving_url,
        changed=True,
    )


class _Before:
    """The revision that a proposal started from; a proposal may be computed more than once."""

    revision: Revision | None = None

    @property
    def number(self) -> int:
        return self.revision.number if self.revision else 0


def _require_pass(catalog: Catalog, candidate: ArtifactRef, verdict: ArtifactRef) -> None:
    judged = catalog.manifest(verdict).content
    if judged.inputs.get("candidate") != candidate.digest:
        raise Refused(str(candidate), [f"{verdict} judged another model"])
    if not judged.facts.get("passed"):
        raise Refused(str(candidate), judged.facts.get("reasons") or [f"{verdict} is not a pass"])


def _default_form(catalog: Catalog, candidate: ArtifactRef) -> str:
    return PackageSpec.model_validate_json(catalog.read(candidate, PACKAGE_FILE)).default_form


def _with_version(current: Revision, model_name: str, newcomer: ServedVersion) -> dict[str, ModelState] | None:
    """The models of the next revision with the newcomer in front, or None when it serves already."""
    state = current.models.get(model_name)
    if state and _same(state.versions[0], newcomer) and len(state.versions) == 1:
        return None
    previous = state.versions[0].model_copy(update={"weight": 100.0}) if state else None
    return {**current.models, model_name: ModelState(versions=[newcomer], previous=previous)}


def _with_previous(current: Revision, model_name: str) -> dict[str, ModelState]:
    state = current.models.get(model_name)
    if state is None:
        known = ", ".join(current.models) or "none"
        raise NotFound(f"the endpoint serves no model {model_name!r}; it serves: {known}")
    if state.previous is None:
        raise NotFound(f"model {model_name!r} has no earlier version to go back to")
    return {**current.models, model_name: ModelState(versions=[state.previous], previous=state.versions[0])}


def _same(serving: ServedVersion, newcomer: ServedVersion) -> bool:
    return (serving.artifact.digest, serving.form) == (newcomer.artifact.digest, newcomer.form)


def _take_over(
    catalog: Catalog, settings: Settings, revision: Revision, before: Revision | None, bound_seconds: float
) -> None:
    """Wait for the endpoint to serve a revision; where it refuses, make the ledger say what really serves."""
    with EndpointClient(settings) as endpoint:
        try:
            endpoint.notify()
            endpoint.await_revision(revision.number, bound_seconds)
        except RolloutFailed as refusal:
            _restore(catalog, settings, revision, before, str(refusal))
            endpoint.notify()
            raise


def _restore(catalog: Catalog, settings: Settings, failed: Revision, before: Revision | None, reason: str) -> None:
    """Write the earlier state as the next revision, unless somebody has moved on meanwhile."""
    earlier = before.models if before else {}

    def change(current: Revision) -> dict[str, ModelState] | None:
        return earlier if current.number == failed.number else None

    restored = propose_revision(
        catalog.store, settings.endpoint_name, change, reason=reason, author="modelyard.rollout"
    )
    log.warning("revision %s restores what served before revision %s", restored.number, failed.number)
