"""Housekeeping as a task."""

from __future__ import annotations

from prefect import get_client, get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import StateType
from prefect.runtime import flow_run

from modelyard.maintain import plan_sweep
from modelyard.maintain import sweep as sweep_core
from tasks.policy import BACKOFF, JITTER, RETRIES, is_transient
from tasks.session import session


@task(retries=RETRIES, retry_delay_seconds=BACKOFF, retry_jitter_factor=JITTER, retry_condition_fn=is_transient,
      cache_policy=NO_CACHE)  # fmt: skip
def sweep(dry_run: bool) -> int:
    """List what nothing reaches, and remove it unless this is a dry run; returns how many objects went.

    A running flow may have found any artifact and be about to read it, so while one runs nothing is removed.
    """
    now = session()
    versions = now.tracker.versions()
    plan = plan_sweep(now.catalog, [ref for version in versions for ref in (version.artifact, version.verdict)])
    busy = _other_runs()
    rows = [removal.model_dump() for removal in plan.removals]
    outcome = "would go (dry run)" if dry_run else "stays while runs are active" if busy else "is removed"
    create_table_artifact(key="maintain-sweep", table=rows, description=f"{len(rows)} things; each {outcome}")
    get_run_logger().info("%s things are out of reach; active runs: %s", len(rows), ", ".join(busy) or "none")
    return 0 if dry_run or busy else sweep_core(now.catalog, plan)


def _other_runs() -> list[str]:
    """Names of the flow runs that are under way, without this one."""
    active = FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING, StateType.CANCELLING])
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=active)))
    return [run.name for run in runs if str(run.id) != flow_run.get_id()]
