"""Closing what a crashed run left open."""

from __future__ import annotations

from uuid import UUID

from prefect import get_client, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterParentFlowRunId,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.states import Crashed

from modelyard.errors import PermanentError
from tasks.devices import free_leases
from tasks.policy import BACKOFF, JITTER, RETRIES, is_transient
from tasks.session import session

OPEN_STATES = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING, StateType.SCHEDULED, StateType.PAUSED]


@task(retries=RETRIES, retry_delay_seconds=BACKOFF, retry_jitter_factor=JITTER, retry_condition_fn=is_transient,
      cache_policy=NO_CACHE)  # fmt: skip
def end_children(flow_run_id: UUID) -> int:
    """Mark every open run below a crashed flow run as crashed, deepest last; returns how many there were."""
    with get_client(sync_client=True) as client:
        root = client.read_flow_run(flow_run_id)
        if root.state_type in OPEN_STATES:
            raise PermanentError(f"flow run {root.name} is {root.state_name}, not crashed; its children are its own")
        return _end_below(client, flow_run_id, f"Its parent run {root.name} crashed.")


@task(retries=RETRIES, retry_delay_seconds=BACKOFF, retry_jitter_factor=JITTER, retry_condition_fn=is_transient,
      cache_policy=NO_CACHE)  # fmt: skip
def end_tracking(flow_run_id: UUID) -> list[str]:
    """End the MLflow runs that the crashed run left open."""
    return session().tracker.end_runs_of(str(flow_run_id))


def _end_below(client: SyncPrefectClient, flow_run_id: UUID, reason: str) -> int:
    if num_leases := free_leases(client.read_flow_run(flow_run_id).labels):
        get_run_logger().info("%d leases of devices given back", num_leases)
    ended = _end_tasks(client, flow_run_id, reason)
    parent = FlowRunFilterParentFlowRunId(any_=[flow_run_id])
    # All children, not only open ones: the heartbeat automation may have ended a child and not the task below it.
    for child in client.read_flow_runs(flow_run_filter=FlowRunFilter(parent_flow_run_id=parent)):
        if child.state_type in OPEN_STATES:
            client.set_flow_run_state(child.id, Crashed(message=reason), force=True)
            get_run_logger().info("flow run %s ended", child.name)
            ended += 1
        ended += _end_below(client, child.id, reason)
    return ended


def _end_tasks(client: SyncPrefectClient, flow_run_id: UUID, reason: str) -> int:
    open_tasks = client.read_task_runs(
        flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id])),
        task_run_filter=TaskRunFilter(state=TaskRunFilterState(type=TaskRunFilterStateType(any_=OPEN_STATES))),
    )
    for run in open_tasks:
        client.set_task_run_state(run.id, Crashed(message=reason), force=True)
        get_run_logger().info("task run %s ended", run.name)
    return len(open_tasks)
