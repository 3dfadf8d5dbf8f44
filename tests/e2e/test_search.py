"""A search as people find it in Prefect and MLflow."""

from __future__ import annotations

from mlflow.tracking import MlflowClient
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

from modelyard.catalog import Catalog
from modelyard.storage import Store
from tests.conftest import Installation
from tests.e2e.driving import children


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
