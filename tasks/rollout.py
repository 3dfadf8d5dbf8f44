"""Rollout and rollback as tasks. Never cached: they compare what is with what should be, and do what is missing.

No concurrency limit: a rollout may wait for requests for hours, and the ledger itself refuses a second one of the same
model. A rollback must never wait.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed, Failed, State

from modelyard.artifacts import ArtifactRef
from modelyard.errors import ApprovalNeeded, RolledBack
from modelyard.revisions import latest_revision
from modelyard.rollout import Release, RolloutConfig, answer
from modelyard.rollout import is_begun_in as is_begun_in_core
from modelyard.rollout import rollback as rollback_core
from modelyard.rollout import rollback_in as rollback_in_core
from modelyard.rollout import rollout as rollout_core
from modelyard.rollout import rollout_in as rollout_in_core
from tasks.policy import BACKOFF, JITTER, RETRIES, is_transient
from tasks.recording import Record, Trail, origin_of, recording
from tasks.results import RolloutResult
from tasks.rollout_page import RolloutPage
from tasks.session import session


@task(retries=RETRIES, retry_delay_seconds=BACKOFF, retry_jitter_factor=JITTER, retry_condition_fn=is_transient,
      cache_policy=NO_CACHE)  # fmt: skip
def rollout(candidate: ArtifactRef, verdict: ArtifactRef, config: RolloutConfig, trail: Trail) -> State[RolloutResult]:
    """Register the candidate and have the endpoint roll it out. A rollback is the task's state, with its evidence."""

    def act(record: Record, page: RolloutPage) -> Release:
        now = record.session
        return rollout_core(
            now.catalog,
            now.tracker,
            now.settings,
            model_name=trail.model_name,
            candidate=candidate,
            verdict=verdict,
            config=config,
            origin=record.origin,
            watcher=page,
        )

    return _recorded("rollout", config, trail, act)


@task(retries=RETRIES, retry_delay_seconds=BACKOFF, retry_jitter_factor=JITTER, retry_condition_fn=is_transient,
      cache_policy=NO_CACHE)  # fmt: skip
def rollback(config: RolloutConfig, trail: Trail, version: str = "") -> State[RolloutResult]:
    """Go back to an earlier version."""

    def act(record: Record, _page: RolloutPage) -> Release:
        now = record.session
        return rollback_core(
            now.catalog,
            now.tracker,
            now.settings,
            model_name=trail.model_name,
            config=config,
            origin=record.origin,
            version=version,
        )

    return _recorded("rollback", config, trail, act)


@task(retries=RETRIES, retry_delay_seconds=BACKOFF, retry_jitter_factor=JITTER, retry_condition_fn=is_transient,
      cache_policy=NO_CACHE)  # fmt: skip
def approve(model_name: str, approved: bool, by: str, reason: str) -> None:
    """Hand a person's answer to the endpoint."""
    now = session()
    answer(now.store, now.settings, model_name, approved=approved, by=by, reason=reason)


@task(retries=RETRIES, retry_delay_seconds=BACKOFF, retry_jitter_factor=JITTER, retry_condition_fn=is_transient,
      cache_policy=NO_CACHE, task_run_name="rollout_in-{region}")  # fmt: skip
def rollout_in(
    region: str, candidate: ArtifactRef, verdict: ArtifactRef, config: RolloutConfig, trail: Trail
) -> RolloutResult:
    """Copy the candidate into a region, verify it there, and have that region's endpoint roll it out."""
    stage = f"rollout-{region}"
    with recording(stage, config.model_dump(mode="json"), trail) as record:
        now = record.session
        release = rollout_in_core(
            region,
            now.catalog,
            now.tracker,
            now.settings,
            model_name=trail.model_name,
            candidate=candidate,
            verdict=verdict,
            config=config,
            origin=record.origin,
        )
        return _result(stage, record, release)


@task(retries=RETRIES, retry_delay_seconds=BACKOFF, retry_jitter_factor=JITTER, retry_condition_fn=is_transient,
      cache_policy=NO_CACHE, task_run_name="is_begun_in-{region}")  # fmt: skip
def is_begun_in(region: str, candidate: ArtifactRef, trail: Trail) -> bool:
    """Whether this flow run has begun, in a region, what it could not see to its end."""
    return is_begun_in_core(region, session().settings, trail.model_name, candidate, origin_of(trail))


@task(retries=RETRIES, retry_delay_seconds=BACKOFF, retry_jitter_factor=JITTER, retry_condition_fn=is_transient,
      cache_policy=NO_CACHE, task_run_name="rollback_in-{region}")  # fmt: skip
def rollback_in(region: str, config: RolloutConfig, trail: Trail, version: str = "") -> RolloutResult:
    """Go back to an earlier version in a region."""
    stage = f"rollback-{region}"
    with recording(stage, config.model_dump(mode="json"), trail) as record:
        now = record.session
        release = rollback_in_core(
            region,
            now.tracker,
            now.settings,
            model_name=trail.model_name,
            config=config,
            origin=record.origin,
            version=version,
        )
        return _result(stage, record, release)


def _recorded(
    stage: str, config: RolloutConfig, trail: Trail, act: Callable[[Record, RolloutPage], Release]
) -> State[RolloutResult]:
    """Leaves an MLflow run and pages; a rollback, and a wait for a person, are states of their own."""
    try:
        with recording(stage, config.model_dump(mode="json"), trail) as record:
            newest = latest_revision(record.session.store, record.session.settings.endpoint_name)
            page = RolloutPage(record, newest.number if newest else 0)
            try:
                release = act(record, page)
            except RolledBack as refusal:
                page.conclude("was rolled back", refusal.reasons)
                raise
            except ApprovalNeeded as wait:  # as it should be, so neither this run nor MLflow's is a failed one
                return Completed(name="AwaitsApproval", message=str(wait), data=wait)
            if release.changed:
                page.conclude(f"version {release.version} serves", [])
            result = _result(stage, record, release)
    except RolledBack as refusal:
        return Failed(name="RolledBack", message=str(refusal), data=refusal)
    return Completed(data=result, message=result.headline)


def _result(stage: str, record: Record, release: Release) -> RolloutResult:
    tags: dict[str, Any] = {
        "modelyard.digest": release.artifact.digest,
        "modelyard.model_version": release.version,
        "modelyard.endpoint_revision": str(release.revision),
    }
    record.session.tracker.set_tags(record.run_id, tags)
    verb = "now serves" if release.changed else "serves already"
    return RolloutResult(
        stage=stage,
        release=release,
        headline=f"version {release.version} ({release.form}) {verb}",
        mlflow_run_id=record.run_id,
        usage=record.usage(),
    )
