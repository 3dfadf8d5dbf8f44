"""Schedules: a trap of some library versions is a server that runs and never creates a scheduled run."""

from __future__ import annotations

from datetime import datetime, timedelta

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.objects import FlowRun

from tests.conftest import Installation
from tests.e2e.driving import eventually


def test_scheduled_run_appears_and_finishes(
    stack: Installation, prefect_client: SyncPrefectClient, scheduled_at: datetime
):
    """A schedule creates a run by itself, and the worker carries it out."""
    deployment = prefect_client.read_deployment_by_name("maintain/nightly")

    def scheduled() -> FlowRun | None:
        runs = prefect_client.read_flow_runs(
            deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id]))
        )
        soon = scheduled_at + timedelta(minutes=2)
        due = [run for run in runs if run.auto_scheduled and run.expected_start_time < soon]
        return next((run for run in due if run.state and run.state.is_final()), None)

    run = eventually(scheduled, 120, "no scheduled run finished")
    assert run.state.is_completed(), run.state.message


def test_nightly_schedule_is_in_a_time_zone(stack: Installation, prefect_client: SyncPrefectClient):
    """The nightly lifecycle is a cron with a zone, so that summer time does not move it."""
    deployment = prefect_client.read_deployment_by_name("lifecycle/digits-nightly")
    (schedule,) = deployment.schedules
    assert schedule.active
    assert (schedule.schedule.cron, schedule.schedule.timezone) == ("15 2 * * *", "Europe/Berlin")
