"""Driving the real stack the way people do: the command line, deployments through the API, HTTP to the endpoint."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterParentFlowRunId
from prefect.client.schemas.objects import FlowRun

from modelyard.storage import Store
from tests.conftest import Installation

RUN_SECONDS = 240
# Overrides of the run that most tests look at.
OWN = [
    "train.seed=41",
    "preprocess.partition_bytes=1",  # a file of the data set is a partition
    "train.max_shard_bytes=20000",  # the trained weights lie in several files
]
T = TypeVar("T")


def modelyard(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line, as a person runs it."""
    command = [sys.executable, "-m", "commands.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=RUN_SECONDS, check=False)


def trigger(client: SyncPrefectClient, deployment: str, **parameters: Any) -> FlowRun:
    found = client.read_deployment_by_name(deployment)
    return client.create_flow_run_from_deployment(found.id, parameters=parameters)


def finished(client: SyncPrefectClient, run: FlowRun, seconds: float = RUN_SECONDS) -> FlowRun:
    """The run once it has reached a final state."""

    def final() -> FlowRun | None:
        now = client.read_flow_run(run.id)
        return now if now.state and now.state.is_final() else None

    return eventually(final, seconds, f"{run.name} did not end")


def result_of(stack: Installation, run: FlowRun) -> dict[str, Any]:
    """What a flow returned, read from the bucket: Prefect's own way leaves connections open in this process."""
    store = Store(stack.settings)
    record = json.loads(store.get(f"{store.root}/prefect-results/{run.state.data.storage_key}"))
    # With the metadata beside it or around it, and the class named around the data: as Prefect's JSON serializer writes.
    result = json.loads(record["result"]) if "result" in record else record
    return result.get("data", result)


def children(client: SyncPrefectClient, run: FlowRun) -> dict[str, FlowRun]:
    """The stage runs below a run, by the name of their flow."""
    parent = FlowRunFilterParentFlowRunId(any_=[run.id])
    found = client.read_flow_runs(flow_run_filter=FlowRunFilter(parent_flow_run_id=parent))
    return {client.read_flow(child.flow_id).name: child for child in found}


def eventually(look: Callable[[], T | None], seconds: float, otherwise: str) -> T:
    """What `look` finds, within a bound."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if (found := look()) is not None:
            return found
        time.sleep(0.3)
    raise AssertionError(f"{otherwise} within {seconds:g} s")
