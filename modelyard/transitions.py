"""What may follow what: from the newest revision to the models of the next one, for one model.

Rollout, rollback and the endpoint propose revisions through these. Each is a pure function of the newest revision, so
that it can be computed again when somebody else's revision came first; None means that there is nothing to write, because
it is so already or because the rollout it belongs to is over.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from modelyard.errors import NotFound, RolloutBusy
from modelyard.gates import RolloutPolicy, StepCounts
from modelyard.revisions import ModelState, Revision, RolloutUnderWay, ServedVersion

Models = dict[str, ModelState]


def begin(
    current: Revision, model: str, newcomer: ServedVersion, policy: RolloutPolicy, rollout_id: str
) -> Models | None:
    """A canary beside what serves; or all requests to the newcomer, where nothing serves yet or the policy says so.

    Raises:
        RolloutBusy: a rollout of another version is not decided yet.
    """
    state = current.models.get(model)
    if state is None:
        return with_model(current, model, ModelState(versions=[_weighing(newcomer, 100)]))
    if state.rollout:
        if is_same(state.versions[1], newcomer):
            return None
        raise RolloutBusy(busy_sentence(model, state))
    if is_same(state.stable, newcomer):
        return None
    if policy.kind == "all_at_once":
        return with_model(
            current, model, ModelState(versions=[_weighing(newcomer, 100)], previous=_weighing(state.stable, 100))
        )
    rollout = RolloutUnderWay(id=rollout_id, policy=policy, started_at=datetime.now(UTC).isoformat())
    return with_model(current, model, _at_step(state, newcomer, rollout))


def advance(
    current: Revision, model: str, rollout_id: str, step: int, counts: Sequence[StepCounts], slow_seconds: float | None
) -> Models | None:
    """The canary's next weight."""
    state = current.models.get(model)
    if state is None or state.rollout is None or state.rollout.id != rollout_id or state.rollout.step >= step:
        return None
    rollout = state.rollout.model_copy(update={"step": step, "counts": list(counts), "slow_seconds": slow_seconds})
    return with_model(current, model, _at_step(state, state.versions[1], rollout))


def approve(current: Revision, model: str, rollout_id: str, by: str) -> Models | None:
    """A person agrees to the canary's promotion."""
    state = current.models.get(model)
    if state is None or state.rollout is None or state.rollout.id != rollout_id or state.rollout.approved_by:
        return None
    rollout = state.rollout.model_copy(update={"approved_by": by})
    return with_model(current, model, state.model_copy(update={"rollout": rollout}))


def promote(current: Revision, model: str, rollout_id: str) -> Models | None:
    """All requests to the canary, the stable version kept warm."""
    state = current.models.get(model)
    if state is None or state.rollout is None or state.rollout.id != rollout_id:
        return None
    stable, canary = state.versions
    return with_model(current, model, ModelState(versions=[_weighing(canary, 100)], previous=_weighing(stable, 100)))


def undo(current: Revision, model: str, rollout_id: str) -> Models | None:
    """All requests to the stable version again, as if the rollout had not been."""
    state = current.models.get(model)
    if state is None or state.rollout is None or state.rollout.id != rollout_id:
        return None
    return with_model(current, model, ModelState(versions=[_weighing(state.stable, 100)], previous=state.previous))


def go_back(current: Revision, model: str, target: ServedVersion | None) -> Models | None:
    """All requests to an earlier version, whatever is under way; what serves now stays warm.

    Args:
        target: the version; None for the stable one while a rollout is under way, else for the one before the present.

    Raises:
        NotFound: the endpoint does not serve the model, or there is nothing to go back to.
    """
    state = current.models.get(model)
    if state is None:
        raise NotFound(f"the endpoint serves no model {model!r}; it serves: {', '.join(current.models) or 'none'}")
    if target is None:
        target = state.stable if state.rollout else state.previous
    if target is None:
        raise NotFound(f"model {model!r} has no earlier version to go back to")
    if is_same(state.stable, target):
        if state.rollout:
            return undo(current, model, state.rollout.id)
        return None
    return with_model(
        current, model, ModelState(versions=[_weighing(target, 100)], previous=_weighing(state.stable, 100))
    )


def without_canaries(revision: Revision) -> Revision:
    """The same revision as if its rollouts had not begun: what can be served while a canary cannot be loaded."""
    models: Models = dict(revision.models)
    for model, state in revision.models.items():
        if state.rollout:
            models |= {model: (undo(revision, model, state.rollout.id) or revision.models)[model]}
    return revision.model_copy(update={"models": models})


def with_model(current: Revision, model: str, state: ModelState) -> Models:
    """Every model of a revision, with one of them in another state."""
    return {**current.models, model: state}


def is_same(one: ServedVersion, other: ServedVersion) -> bool:
    """Whether two served versions answer alike: not their weight, nor who rolled them out."""
    return (one.artifact.digest, one.form) == (other.artifact.digest, other.form)


def busy_sentence(model: str, state: ModelState) -> str:
    """Why no other rollout of this model may begin."""
    assert state.rollout
    canary, rollout = state.versions[1], state.rollout
    by = f", by flow run {canary.flow_run_id}" if canary.flow_run_id else ""
    return (
        f"a rollout of {model} version {canary.version} is at {canary.weight:g} % since {rollout.started_at}{by};"
        f" wait until it is decided, or end it with `modelyard rollback {model}`"
    )


def _at_step(state: ModelState, canary: ServedVersion, rollout: RolloutUnderWay) -> ModelState:
    weight = rollout.policy.weights[rollout.step]
    versions = [_weighing(state.stable, 100 - weight), _weighing(canary, weight)]
    return ModelState(versions=versions, previous=state.previous, rollout=rollout)


def _weighing(version: ServedVersion, weight: float) -> ServedVersion:
    update: dict[str, Any] = {"weight": weight}
    return version.model_copy(update=update)
