"""The registry's aliases follow the ledger, also where the flow died that was to move them."""

from __future__ import annotations

from modelyard.catalog import Catalog
from modelyard.errors import NotFound
from modelyard.revisions import ModelState, latest_revision
from modelyard.rollout.agreement import of_the_endpoint
from modelyard.settings import Settings
from modelyard.tracking import Tracker


def follow(catalog: Catalog, tracker: Tracker, settings: Settings) -> list[str]:
    """Have the registry call champion what serves all requests, where it calls another version so; what was moved, as sentences.

    Only of models whose rollout is decided, and only while the endpoint serves what the ledger says: until then the version
    may still be refused.

    Raises:
        StoreUnavailable, TrackerUnavailable: it cannot be told now.
    """
    newest = latest_revision(catalog.store, settings.endpoint_name)
    if newest is None or any(of_the_endpoint(settings, newest)):
        return []
    decided = {model: state for model, state in newest.models.items() if state.rollout is None}
    return [
        f"the registry's champion of {model} is version {state.stable.version} now, as the ledger says"
        for model, state in decided.items()
        if _is_moved(tracker, model, state)
    ]


def _is_moved(tracker: Tracker, model: str, state: ModelState) -> bool:
    """Whether the alias had to be moved; one that cannot be, because the registry knows the version otherwise, stays."""
    wanted = (state.stable.version, state.stable.artifact.digest)
    champion = tracker.version_by_alias(model, "champion")
    if champion and (champion.version, champion.artifact.digest) == wanted:
        return False
    try:
        known = tracker.version(model, state.stable.version)
    except NotFound:
        return False
    if known.artifact.digest != state.stable.artifact.digest:
        return False
    tracker.set_alias(model, "champion", known.version)
    return True
