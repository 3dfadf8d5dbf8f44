"""A search as people find it in Prefect and MLflow; with fine-tunes and a student, through the train stage."""

from __future__ import annotations

import json

import pytest
from mlflow.tracking import MlflowClient
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

from modelyard.catalog import Catalog
from modelyard.storage import Store
from tests.conftest import Installation
from tests.e2e.driving import OWN, children, finished, modelyard, trigger

SEARCH = json.dumps(
    {
        "prefer": "size",
        "budget": {"max_drop": {"accuracy": {"absolute": 0.06}}},
        "networks": [
            {"technique": "prune_units", "fraction": 0.5, "recovery": {"max_epochs": 5}},
            {"technique": "prune_weights", "fraction": 0.5, "recovery": {"max_epochs": 3}},
            {"technique": "distil", "width_fraction": 0.25, "recovery": {"max_epochs": 10}},
        ],
        "forms": [{"technique": "static_int8"}],
    }
)


def test_a_search_can_be_looked_at(stack: Installation, last_run: dict, prefect_client: SyncPrefectClient):
    """A nested MLflow run for each candidate, the picture and the table; the package has all of it as evidence."""
    client, stage = MlflowClient(), last_run["stages"][2]
    experiment = client.get_run(stage["mlflow_run_id"]).info.experiment_id
    nested = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{stage['mlflow_run_id']}'")
    assert {run.info.run_name for run in nested} == {"candidate float", "candidate int8", "candidate fp16-weights"}
    for run in nested:
        assert {"size_bytes", "drop_accuracy_bound", "batch_1_p50_ms", "batch_1_of_float"} <= set(run.data.metrics)
    assert "candidates.png" in [file.path for file in client.list_artifacts(stage["mlflow_run_id"])]
    flow = children(prefect_client, prefect_client.read_flow_run(last_run["flow_run_id"]))["compress"]
    wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow.id]))
    kinds = {found.key: found.type for found in prefect_client.read_artifacts(artifact_filter=wanted)}
    shown = {"compress-candidates": "table", "compress-front": "image", "compress-forms": "table"}
    assert shown.items() <= kinds.items()
    catalog = Catalog(Store(stack.settings))
    measured = catalog.manifest(catalog.resolve(stage["ref"]["digest"])).provenance.measurements
    assert measured["search"]["winner"] == "int8"


@pytest.mark.soak
@pytest.mark.timeout(1500)
def test_the_train_stage_has_its_part(stack: Installation, last_run: dict, prefect_client: SyncPrefectClient):
    """Units go and are made up for, zeroed weights stay zero, a student learns: then int8 of what is left is served."""
    run = trigger(prefect_client, "compress/digits", overrides=[*OWN, f"compress.search={SEARCH}"])
    run = finished(prefect_client, run, seconds=1200)
    assert run.state.is_completed(), run.state.message
    told = run.state.result()
    catalog = Catalog(Store(stack.settings))
    search = catalog.manifest(catalog.resolve(told["ref"]["digest"])).provenance.measurements["search"]
    found = {one["name"]: one for one in search["candidates"]}
    for name in ("units-0.5", "weights-0.5", "distil-0.25"):
        assert found[name]["built"], found[name]
    whole = found["float"]["built"]["parameters"]
    assert found["units-0.5"]["built"]["parameters"] < 0.51 * whole
    assert found["distil-0.25"]["built"]["parameters"] < 0.26 * whole
    assert found["units-0.5"]["built"]["drops"]["accuracy"]["drop"] < 0.02
    assert search["winner"] == "units-0.5-int8"
    assert modelyard("trace", told["ref"]["digest"]).returncode == 0
