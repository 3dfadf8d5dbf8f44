"""Partitions of a data set as people see them in Prefect, where other processes prepare them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pandas as pd
import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowRunFilter,
    FlowRunFilterId,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.client.schemas.objects import FlowRun

from modelyard.storage import Store
from tests.conftest import Installation
from tests.e2e.driving import finished, trigger

NUM_FILES = 60
OVERRIDES = [
    "preprocess.partition_bytes=1",
    "preprocess.workers={kind: processes, count: 2, memory_bytes: 536870912}",
    "preprocess.max_rejected_fraction=0.5",
]


@pytest.mark.soak
def test_a_share_that_fails_ends_the_others_and_is_named(stack: Installation, prefect_client: SyncPrefectClient):
    """Of sixty files one lacks a column: the run fails with its sentence, and not all shares were begun. Mended, the run goes
    on with what is left: a task run and a log line for each share, and a progress bar that is full."""
    store = Store(stack.settings)
    folder = f"{store.root}/raw/partitions"
    for number in range(NUM_FILES):
        store.put(f"{folder}/{number:02d}.csv", _rows(number))
    store.put(f"{folder}/20.csv", b"x0,x1\n1,2\n")
    failed = finished(
        prefect_client, trigger(prefect_client, "preprocess/digits", dataset_uri=folder, overrides=OVERRIDES)
    )
    assert failed.state_name == "Failed"
    assert "20.csv: column 'label' is missing" in failed.state.message
    states = _shares(prefect_client, failed)
    assert states["Failed"] == 1
    assert states.keys() <= {"Failed", "Completed", "Cancelled"}
    assert states.total() < 50

    store.put(f"{folder}/20.csv", _rows(20))
    mended = finished(
        prefect_client, trigger(prefect_client, "preprocess/digits", dataset_uri=folder, overrides=OVERRIDES)
    )
    assert mended.state_name == "Completed", mended.state.message
    states = _shares(prefect_client, mended)
    assert states.keys() == {"Completed"}
    found = prefect_client.read_artifacts(
        artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[mended.id]))
    )
    (bar,) = [artifact for artifact in found if artifact.key == "preprocess-progress"]
    assert bar.data == 100.0
    assert bar.description == f"{states.total()} of {states.total()} shares of the partitions are prepared"
    logs = prefect_client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[mended.id])))
    assert sum(log.message.startswith("prepared in") for log in logs) == states.total()


def _rows(number: int) -> bytes:
    values = np.random.default_rng(number).uniform(0, 16, (40, 2))
    return pd.DataFrame(values, columns=["x0", "x1"]).assign(label=np.arange(40) % 2).to_csv(index=False).encode()


def _shares(client: SyncPrefectClient, run: FlowRun) -> Counter[str]:
    """States of a run's shares."""
    of_run = FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))
    found = client.read_task_runs(flow_run_filter=of_run, limit=200)
    return Counter(str(one.state_name) for one in found if one.name.startswith("partition"))
