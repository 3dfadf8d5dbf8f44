"""The whole embedded stack, through the code behind `modelyard up`."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import httpx
import psutil
import pytest

from commands import prefect_objects
from commands import stack as stack_commands
from commands.parts import ENDPOINT, MLFLOW, PARTS, Part
from commands.replace import replace_router
from commands.supervision import Supervisor, orphans
from tests.conftest import Installation, alive


def test_up_twice_changes_nothing(stack: Installation):
    """Every program keeps its pid, every part answers, and nothing is applied to Prefect again."""
    before = {name: program.pid for name, program in Supervisor(stack.home).states().items()}
    ready = []
    stack_commands.up(stack.settings, PARTS, ready.append)
    after = {name: program.pid for name, program in Supervisor(stack.home).states().items()}
    assert after == before
    assert {part.part.name for part in ready if part.was_running} == {part.name for part in PARTS}
    assert prefect_objects.ensure(stack.settings) is False


def test_status_knows_every_part(stack: Installation):
    """State, pid, memory and uptime of each, and no problem."""
    for part in stack_commands.status(stack.settings):
        assert (part.state, part.problem) == ("ready", None)
        assert part.pid
        assert part.rss_bytes
        assert part.rss_bytes > 2**20
        assert part.uptime_seconds is not None


def test_everything_listens_on_one_address_only(stack: Installation):
    """No part of the stack can be reached from outside by default."""
    addresses = set()
    for process in orphans(stack.home):
        addresses |= {
            connection.laddr.ip for connection in process.net_connections("inet") if connection.status == "LISTEN"
        }
    assert addresses == {"127.0.0.1"}


@pytest.mark.parametrize("part", [ENDPOINT, pytest.param(MLFLOW, marks=pytest.mark.soak)], ids=lambda part: part.name)
def test_a_killed_part_comes_back(stack: Installation, part: Part):
    """Also when it leaves children that hold its port."""
    supervisor = Supervisor(stack.home)
    before = supervisor.states()[part.name].pid
    assert before is not None
    children = psutil.Process(before).children(recursive=True)
    os.kill(before, signal.SIGKILL)
    psutil.wait_procs(children, timeout=5)
    assert alive(children) == []
    stack_commands.up(stack.settings)
    assert supervisor.states()[part.name].pid != before


def test_the_endpoints_router_is_replaced(stack: Installation):
    """Another router answers, under the same parent; nothing else was restarted."""
    supervisor = Supervisor(stack.home)
    parent = supervisor.states()["endpoint"].pid
    before, after = replace_router(stack.settings, 60)
    assert before != after
    assert supervisor.states()["endpoint"].pid == parent
    assert psutil.Process(after).ppid() == parent


def test_the_results_block_holds_no_secret(stack: Installation):
    """Read through Prefect's API with secrets included, the block is an address and nothing more."""
    secret = stack.settings.s3_secret_key
    assert secret is not None
    with httpx.Client(base_url=stack.settings.api_url) as api:
        answer = api.post("/block_documents/filter", json={"include_secrets": True})
    block = next(block for block in answer.json() if block["name"] == prefect_objects.RESULTS_BLOCK)
    assert block["data"]["basepath"] == f"s3://{stack.settings.bucket}/prefect-results"
    assert secret.get_secret_value() not in answer.text
    assert str(stack.settings.s3_access_key) not in answer.text


@pytest.mark.soak
def test_prefect_objects_exist_once(stack: Installation):
    """Applied again from scratch they are still one of each."""
    (stack.home / "prefect" / "applied.json").unlink()
    assert prefect_objects.ensure(stack.settings) is True
    with httpx.Client(base_url=stack.settings.api_url) as api:
        pools = [pool["name"] for pool in api.post("/work_pools/filter", json={}).json()]
        limits = api.post("/v2/concurrency_limits/filter", json={}).json()
        automations = sorted(known["name"] for known in api.post("/automations/filter", json={}).json())
    assert pools == [stack.settings.work_pool]
    assert {limit["name"]: limit["limit"] for limit in limits} == {
        prefect_objects.DEVICES_LIMIT: prefect_objects.num_devices(stack.settings)
    }
    assert automations == ["Crash silent flow runs", "Reconcile crashed flow runs"]


def test_a_crashed_run_is_reconciled_once(stack: Installation):
    """The automation starts the reconciler with the id of the run, and not for runs without a deployment."""
    with httpx.Client(base_url=stack.settings.api_url) as api:
        reconciler = api.get(f"/deployments/name/{prefect_objects.RECONCILE_DEPLOYMENT}").json()["id"]
        anything = api.get("/deployments/name/maintain/nightly").json()["id"]
        later = {"type": "SCHEDULED", "state_details": {"scheduled_time": "2099-01-01T00:00:00Z"}}
        created = api.post(f"/deployments/{anything}/create_flow_run", json={"state": later}).raise_for_status()
        crashed = created.json()["id"]
        crash = {"state": {"type": "CRASHED", "name": "Crashed"}, "force": True}
        api.post(f"/flow_runs/{crashed}/set_state", json=crash).raise_for_status()
        runs = _runs_of(api, reconciler, bound_seconds=20)
    assert [run["parameters"] for run in runs] == [{"flow_run_id": crashed}]


def _runs_of(api: httpx.Client, deployment_id: str, bound_seconds: float) -> list[dict[str, object]]:
    deadline = time.monotonic() + bound_seconds
    runs: list[dict[str, object]] = []
    while not runs and time.monotonic() < deadline:
        time.sleep(0.2)
        body = {"flow_runs": {"deployment_id": {"any_": [deployment_id]}}}
        runs = api.post("/flow_runs/filter", json=body).json()
    return runs


def test_the_environment_of_the_session_reaches_the_stack(stack: Installation):
    """What the stack's programs get is what this process has: a client needs nothing else."""
    assert os.environ["PREFECT_API_URL"] == stack.settings.api_url
    assert os.environ["MLFLOW_TRACKING_URI"] == stack.settings.tracking_url
    assert Path(os.environ["AWS_SHARED_CREDENTIALS_FILE"]).is_file()
