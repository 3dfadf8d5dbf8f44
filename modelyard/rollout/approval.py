"""A person's yes or no to a canary that has all it needs, as a revision of its own."""

from __future__ import annotations

from functools import partial

from modelyard import transitions
from modelyard.errors import ConfigError, NotFound
from modelyard.revisions import Decision, Revision, first_revision, latest_revision, propose_revision
from modelyard.rollout.endpoint import EndpointClient
from modelyard.settings import Settings
from modelyard.storage import Store


def answer(store: Store, settings: Settings, model_name: str, *, approved: bool, by: str, reason: str = "") -> Revision:
    """Write what a person says about the rollout that is under way, and tell the endpoint.

    Raises:
        ConfigError: nobody stands for it.
        NotFound: no rollout of the model is under way.
        EndpointUnavailable: the revision stands, and the endpoint will find it.
    """
    if not by.strip():
        raise ConfigError("by", "an approval, or a refusal, needs the name of who gives it")
    newest = latest_revision(store, settings.endpoint_name) or first_revision()
    state = newest.models.get(model_name)
    if state is None or state.rollout is None:
        raise NotFound(f"no rollout of {model_name!r} is under way on endpoint {settings.endpoint_name!r}")
    version, rollout_id = state.versions[1].version, state.rollout.id
    words = f"{'approved' if approved else 'refused'} by {by}{f': {reason}' if reason else ''}"
    revision = propose_revision(
        store,
        settings.endpoint_name,
        partial(transitions.approve, model=model_name, rollout_id=rollout_id, by=by)
        if approved
        else partial(transitions.undo, model=model_name, rollout_id=rollout_id),
        reason=f"{model_name} version {version} {words}",
        author=by,
        decision=Decision(
            model=model_name,
            action="approve" if approved else "roll_back",
            version=version,
            rollout_id=rollout_id,
            reasons=[words],
        ),
    )
    with EndpointClient(settings) as endpoint:
        endpoint.notify(revision.number)
    return revision
