"""Schedules: a trap of some library versions is a server that runs and never creates a scheduled run."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.schedules import IntervalSchedule

from tests.conftest import Installation
from tests.e2e.driving import eventually


def test_scheduled_run_appears_and_finishes(stack: Installation, prefect_client: SyncPrefectClient):
    """A schedule creates a run by itself, and the worker carries it out."""
    deployment = prefect_client.read_deployment_by_name("maintain/nightly")
    began = datetime.now(UTC)
    soon = IntervalSchedule(interval=timedelta(minutes=1), anchor_date=began + timedelta(seconds=20))
    schedules = f"/deployments/{deployment.id}/schedules"
    # The synchronous client has no methods for schedules.
    body = [{"schedule": soon.model_dump(mode="json"), "active": True, "parameters": {"dry_run": True}}]
    created = prefect_client._client.post(schedules, json=body).raise_for_status().json()

    def scheduled() -> FlowRun | None:
        runs = prefect_client.read_flow_runs(
            deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id]))
        )
        due = [run for run in runs if run.auto_scheduled and run.expected_start_time < began + timedelta(minutes=5)]
        return next((run for run in due if run.state and run.state.is_final()), None)

    try:
        run = eventually(scheduled, 120, "no scheduled run finished")
    finally:
        prefect_client._client.delete(f"{schedules}/{created[0]['id']}")
    assert run.state.is_completed(), run.state.message


def test_nightly_schedule_is_in_a_time_zone(stack: Installation, prefect_client: SyncPrefectClient):
    """The nightly lifecycle is a cron with a zone, so that summer time does not move it."""
    deployment = prefect_client.read_deployment_by_name("lifecycle/digits-nightly")
    (schedule,) = deployment.schedules
    assert schedule.active
    assert (schedule.schedule.cron, schedule.schedule.timezone) == ("15 2 * * *", "Europe/Berlin")
