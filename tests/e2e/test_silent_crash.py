"""The worker and the flow die together, so nobody is left to report: only the missing heartbeats tell."""

from __future__ import annotations

import signal

import psutil
import pytest
from prefect.client.orchestration import SyncPrefectClient

from commands.supervision import Supervisor
from tests.conftest import Installation
from tests.e2e.driving import children, eventually, finished, trigger
from tests.e2e.test_recovery import SLOW, checkpoints, flow_process, open_runs, rank_processes

HEARTBEATS_SECONDS = 240  # the automation waits for 90 s of silence, then the worker must start the reconciler


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_run_whose_worker_died_too_is_closed_by_the_automation(
    stack: Installation, last_run: dict, prefect_client: SyncPrefectClient
):
    """`kill -9` of worker and flow process at once: no rank lives on, the automation marks the run Crashed, its children
    follow, and the restarted worker carries the next run to its end."""
    run = trigger(prefect_client, "lifecycle/digits", overrides=[*SLOW, "train.seed=12"])
    eventually(lambda: checkpoints(stack, prefect_client, run) or None, 120, "training wrote no checkpoint")
    process = eventually(lambda: flow_process(stack, run), 5, "no process carries the flow run")
    ranks = rank_processes(stack)
    worker = psutil.Process(Supervisor(stack.home).states()["worker"].pid)
    worker.send_signal(signal.SIGKILL)
    process.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(ranks, timeout=10)
    assert not alive
    assert finished(prefect_client, run, HEARTBEATS_SECONDS).state.is_crashed()
    eventually(lambda: None if open_runs(prefect_client, run) else True, 120, "children stayed open")
    again = finished(prefect_client, trigger(prefect_client, "lifecycle/digits", overrides=[*SLOW, "train.seed=12"]))
    assert again.state.is_completed(), again.state.message
    assert children(prefect_client, again)["train"].state.is_completed()
