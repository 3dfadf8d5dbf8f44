"""Rollout and rollback as tasks. Never cached: they compare what is with what should be, and do what is missing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed, State

from modelyard.artifacts import ArtifactRef
from modelyard.rollout import Release, RolloutConfig
from modelyard.rollout import rollback as rollback_core
from modelyard.rollout import rollout as rollout_core
from tasks.policy import BACKOFF, JITTER, RETRIES, is_transient
from tasks.recording import Record, Trail, recording
from tasks.results import RolloutResult

# Held by a concurrency limit of the same tag: two rollouts at once would fight over who is champion.
ROLLOUT_TAG = "modelyard-rollout"


@task(retries=RETRIES, retry_delay_seconds=BACKOFF, retry_jitter_factor=JITTER, retry_condition_fn=is_transient,
      cache_policy=NO_CACHE, tags={ROLLOUT_TAG})  # fmt: skip
def rollout(candidate: ArtifactRef, verdict: ArtifactRef, config: RolloutConfig, trail: Trail) -> State[RolloutResult]:
    """Register the candidate and have the endpoint take it over."""

    def act(record: Record) -> Release:
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
        )

    return _recorded("rollout", config, trail, act)


@task(retries=RETRIES, retry_delay_seconds=BACKOFF, retry_jitter_factor=JITTER, retry_condition_fn=is_transient,
      cache_policy=NO_CACHE, tags={ROLLOUT_TAG})  # fmt: skip
def rollback(config: RolloutConfig, trail: Trail) -> State[RolloutResult]:
    """Go back to the version that served before."""

    def act(record: Record) -> Release:
        now = record.session
        return rollback_core(
            now.catalog, now.tracker, now.settings, model_name=trail.model_name, config=config, origin=record.origin
        )

    return _recorded("rollback", config, trail, act)


def _recorded(
    stage: str, config: RolloutConfig, trail: Trail, act: Callable[[Record], Release]
) -> State[RolloutResult]:
    with recording(stage, config.model_dump(mode="json"), trail) as record:
        release = act(record)
        tags: dict[str, Any] = {
            "modelyard.digest": release.artifact.digest,
            "modelyard.model_version": release.version,
            "modelyard.endpoint_revision": str(release.revision),
        }
        record.session.tracker.set_tags(record.run_id, tags)
        verb = "now serves" if release.changed else "serves already"
        result = RolloutResult(
            stage=stage,
            release=release,
            headline=f"version {release.version} ({release.form}) {verb}",
            mlflow_run_id=record.run_id,
            usage=record.usage(),
        )
    return Completed(data=result, message=result.headline)
