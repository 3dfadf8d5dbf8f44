"""Do all who speak of what is served say the same? Aliases, revisions, replicas, manifests; at home and in every region."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Catalog
from modelyard.errors import EndpointUnavailable, ModelyardError, PermanentError, StoreUnavailable, TrackerUnavailable
from modelyard.ledger import history
from modelyard.regions import region_names, region_settings
from modelyard.revisions import ModelState, Revision, ServedVersion, first_revision, latest_revision, replica_statuses
from modelyard.rollout.endpoint import EndpointClient, status_of
from modelyard.settings import Settings
from modelyard.storage import Store
from modelyard.tracking import Tracker

# A rollout that has not moved for so long has lost its owner, or waits for requests that do not come.
STUCK_AFTER = timedelta(days=1)
# Regions follow one after another: only then one that serves something else than home is no longer waiting for its turn.
FOLLOWS_WITHIN = timedelta(hours=6)


def disagreements(catalog: Catalog, tracker: Tracker, settings: Settings) -> list[str]:
    """Every disagreement, as a sentence that names both sides and what to do; none: all is well.

    Regions that cannot be asked are named as well: the others' answers are not to be missed for one of them.

    Raises:
        StoreUnavailable, TrackerUnavailable: it cannot be told now.
    """
    home = latest_revision(catalog.store, settings.endpoint_name) or first_revision()
    found = _of_an_installation(catalog, tracker, settings, home)
    for model, state in home.models.items():
        found += _aliases(tracker, model, state)
    for region in region_names(settings):
        found += [f"region {region}: {said}" for said in _of_a_region(region, catalog, tracker, settings, home)]
    return found


def _of_a_region(region: str, catalog: Catalog, tracker: Tracker, settings: Settings, home: Revision) -> Iterator[str]:
    """The same of a region's endpoint and bucket. The registry's aliases speak of home, so a region is held against it."""
    try:
        own = region_settings(settings, region)
        there = Catalog(Store(own))
        newest = latest_revision(there.store, own.endpoint_name) or first_revision()
        yield from _of_an_installation(there, tracker, own, newest)
    except TrackerUnavailable:
        raise
    except ModelyardError as failure:
        yield f"it cannot be asked: {failure}"
        return
    for model, state in newest.models.items():
        if model not in home.models:
            yield f"it serves {model} version {state.stable.version}, which the home installation does not serve"
        elif state.rollout is None:
            yield from _left_behind(region, catalog.store, settings.endpoint_name, model, state, home.models[model])


def _left_behind(
    region: str, store: Store, endpoint: str, model: str, there: ModelState, home: ModelState
) -> Iterator[str]:
    """A region that was to follow, and did not."""
    if home.rollout or there.stable.artifact.digest == home.stable.artifact.digest:
        return
    [now] = [span for span in history(store, endpoint, model) if span.end is None]
    if datetime.now(UTC) - datetime.fromisoformat(now.begin) > FOLLOWS_WITHIN:
        yield (
            f"it serves {model} version {there.stable.version}, the home installation {home.stable.version} since"
            f" {now.begin}; roll it out with `rollout.regions: [{region}]`, or go back at home"
        )


def _of_an_installation(catalog: Catalog, tracker: Tracker, settings: Settings, newest: Revision) -> list[str]:
    """Of one endpoint, its ledger, its replicas, and the manifests in its bucket."""
    found = [*of_the_endpoint(settings, newest), *_replicas(catalog, settings, newest)]
    for model, state in newest.models.items():
        found += _stuck(model, state)
        for served in [*state.versions, *([state.previous] if state.previous else [])]:
            found += _manifests(catalog, model, served)
            found += _registered(tracker, model, served)
    return found


def of_the_endpoint(settings: Settings, newest: Revision) -> Iterator[str]:
    """What the endpoint that this installation talks to says right now, against the newest revision."""
    try:
        with EndpointClient(settings) as endpoint:
            page = endpoint.page()
    except (EndpointUnavailable, PermanentError) as failure:
        yield f"the endpoint cannot be asked: {failure}; start it with `modelyard up endpoint`"
        return
    status = status_of(page)
    if status.revision != newest.number:
        why = f": {status.error}" if status.error else ""
        yield (
            f"the endpoint serves revision {status.revision}, the ledger wants {newest.number}{why};"
            f" roll back with `modelyard rollback`, or mend what it names"
        )
        return
    for model, state in newest.models.items():
        for said in _of_a_model(state, page["models"].get(model, {"versions": [], "previous": None})):
            why = f" ({status.error})" if status.error else ""
            yield f"the endpoint {said.format(model=model, number=newest.number)}{why}"


def _of_a_model(state: ModelState, told: dict[str, Any]) -> Iterator[str]:
    """Versions, their bytes and their weights, and the way back."""
    wanted = {one.version: one for one in state.versions}
    served = {one["version"]: one for one in told["versions"]}
    if wanted.keys() != served.keys():
        yield f"serves {{model}} in versions {sorted(served)}, revision {{number}} names {sorted(wanted)}"
        return
    for version, one in wanted.items():
        if (digest := served[version]["digest"]) != one.artifact.digest:
            yield f"serves {digest[:12]} as {{model}} version {version}, revision {{number}} names {one.artifact}"
        if (weight := served[version]["weight"]) != one.weight:
            yield f"gives {{model}} version {version} {weight:g} % of the requests, revision {{number}} {one.weight:g} %"
    if state.previous and not told["previous"]:
        yield f"does not keep {{model}} version {state.previous.version} warm for going back; its log says why"


def _replicas(catalog: Catalog, settings: Settings, newest: Revision) -> Iterator[str]:
    """What each replica last wrote into the bucket."""
    for status in replica_statuses(catalog.store, settings.endpoint_name):
        if status.error and status.revision == status.attempted:
            yield f"replica {status.replica}, at revision {status.revision}: {status.error}"
        elif status.error:
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
            f" {state.stable.version}; a rollout or rollback died before its last step"
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
