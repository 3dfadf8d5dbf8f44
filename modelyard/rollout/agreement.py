"""Do all who speak of what is served say the same? Aliases, revisions, replicas, manifests."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Catalog
from modelyard.errors import EndpointUnavailable, ModelyardError, PermanentError, StoreUnavailable, TrackerUnavailable
from modelyard.revisions import ModelState, Revision, ServedVersion, first_revision, latest_revision, replica_statuses
from modelyard.rollout.endpoint import EndpointClient
from modelyard.settings import Settings
from modelyard.tracking import Tracker

# A rollout that has not moved for so long has lost its owner, or waits for requests that do not come.
STUCK_AFTER = timedelta(days=1)


def disagreements(catalog: Catalog, tracker: Tracker, settings: Settings) -> list[str]:
    """Every disagreement, as a sentence that names both sides and what to do; none: all is well.

    Raises:
        StoreUnavailable, TrackerUnavailable: it cannot be told now.
    """
    newest = latest_revision(catalog.store, settings.endpoint_name) or first_revision()
    found = [*_endpoint(settings, newest), *_replicas(catalog, settings, newest)]
    for model, state in newest.models.items():
        found += _aliases(tracker, model, state)
        found += _stuck(model, state)
        for served in [*state.versions, *([state.previous] if state.previous else [])]:
            found += _manifests(catalog, model, served)
            found += _registered(tracker, model, served)
    return found


def _endpoint(settings: Settings, newest: Revision) -> Iterator[str]:
    """What the endpoint that this installation talks to says right now."""
    try:
        with EndpointClient(settings) as endpoint:
            status = endpoint.status()
    except (EndpointUnavailable, PermanentError) as failure:
        yield f"the endpoint cannot be asked: {failure}; start it with `modelyard up endpoint`"
        return
    if status.revision != newest.number:
        why = f": {status.error}" if status.error else ""
        yield (
            f"the endpoint serves revision {status.revision}, the ledger wants {newest.number}{why};"
            f" roll back with `modelyard rollback`, or mend what it names"
        )
    for model, state in newest.models.items():
        wanted, served = [version.version for version in state.versions], status.serving.get(model, [])
        if status.revision == newest.number and sorted(wanted) != sorted(served):
            yield f"the endpoint serves {model} in versions {served}, revision {newest.number} names {wanted}"


def _replicas(catalog: Catalog, settings: Settings, newest: Revision) -> Iterator[str]:
    """What each replica last wrote into the bucket."""
    for status in replica_statuses(catalog.store, settings.endpoint_name):
        if status.error:
            yield f"replica {status.replica} could not take over revision {status.attempted}: {status.error}"
        elif status.revision > newest.number:
            yield f"replica {status.replica} says it serves revision {status.revision}, which the ledger does not have"


def _aliases(tracker: Tracker, model: str, state: ModelState) -> Iterator[str]:
    champion = tracker.version_by_alias(model, "champion")
    if champion is None:
        yield f"{model} version {state.stable.version} serves, and the registry knows no champion of {model}"
    elif (champion.version, champion.artifact.digest) != (state.stable.version, state.stable.artifact.digest):
        yield (
            f"the registry calls {model} version {champion.version} champion, the endpoint should serve"
            f" {state.stable.version}; a rollout or rollback died before its last step: run it once more"
        )


def _registered(tracker: Tracker, model: str, served: ServedVersion) -> Iterator[str]:
    try:
        known = tracker.version(model, served.version)
    except TrackerUnavailable:
        raise
    except PermanentError as failure:
        yield f"{model} version {served.version} is served, and the registry does not know it: {failure}"
        return
    if known.artifact.digest != served.artifact.digest:
        yield (
            f"{model} version {served.version} is {served.artifact} on the endpoint, and {known.artifact} in the registry"
        )


def _manifests(catalog: Catalog, model: str, served: ServedVersion) -> Iterator[str]:
    for what, ref in _artifacts(served):
        try:
            catalog.manifest(ref)
        except StoreUnavailable:
            raise
        except ModelyardError as failure:
            yield f"the {what} of {model} version {served.version} is gone or altered: {failure}"


def _artifacts(served: ServedVersion) -> list[tuple[str, ArtifactRef]]:
    return [("package", served.artifact), ("verdict", served.verdict)]


def _stuck(model: str, state: ModelState) -> Iterator[str]:
    if state.rollout is None:
        return
    age = datetime.now(UTC) - datetime.fromisoformat(state.rollout.started_at)
    if age > STUCK_AFTER:
        canary = state.versions[1]
        yield (
            f"a rollout of {model} version {canary.version} is at {canary.weight:g} % since {state.rollout.started_at};"
            f" end it with `modelyard rollback {model}`"
        )
