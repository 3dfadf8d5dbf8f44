"""The whole way on the real stack: from files in the bucket to answers of the endpoint. Tests build on each other."""

from __future__ import annotations

import itertools
import json
import re
from importlib.metadata import version

import httpx
import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.tracking import MlflowClient
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterKey,
    FlowRunFilter,
    FlowRunFilterId,
)

from commands.prediction import ask, held_out_rows
from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Catalog
from modelyard.models.weights import weight_files
from modelyard.storage import Store
from tests.conftest import Installation
from tests.e2e.driving import OWN, children, eventually, finished, modelyard, trigger

STAGES = ["preprocess", "train", "compress", "evaluate", "rollout"]


def test_run_leads_from_files_to_a_served_model(stack: Installation, last_run: dict):
    """`modelyard run` goes through every stage, and what it reports is what the endpoint and the bucket hold, though the trained
    weights lie in several files."""
    assert [stage["stage"] for stage in last_run["stages"]] == STAGES
    assert last_run["metrics"]["compressed"]["accuracy"] >= 0.93
    assert last_run["prediction"]["version"] == last_run["model_version"]
    assert last_run["prediction"]["digest"] == last_run["artifacts"]["compressed"]["digest"]
    for ref in last_run["artifacts"].values():
        assert Catalog(Store(stack.settings)).resolve(ref["digest"]).uri == ref["uri"]
    model = ArtifactRef.model_validate(last_run["artifacts"]["model"])
    assert len(weight_files(Catalog(Store(stack.settings)).manifest(model).content.files)) > 2
    train = last_run["stages"][1]["usage"]
    assert train["device_seconds"] > 0
    assert train["bytes_stored"] > 0


# mlflow warns about its own type hints when its pyfunc module is imported.
@pytest.mark.filterwarnings("ignore::UserWarning:mlflow", "ignore:Any type hint", "ignore::DeprecationWarning")
def test_answers_of_the_endpoint_are_those_of_the_registered_version(stack: Installation, last_run: dict):
    """`models:/digits@champion` loads through mlflow without a pickle and predicts what the endpoint predicts."""
    catalog = Catalog(Store(stack.settings))
    rows = held_out_rows(catalog, catalog.resolve(last_run["artifacts"]["dataset"]["digest"]), 50)
    answer = ask(stack.settings, "digits", rows)
    champion = mlflow.pyfunc.load_model("models:/digits@champion")
    columns = json.loads(catalog.read(catalog.resolve(answer.digest), "transform.json"))["features"]
    frame = pd.DataFrame(rows.values, columns=[column["name"] for column in columns])
    assert champion.predict(frame)["label"].tolist() == answer.labels
    assert np.mean(np.array(answer.labels) == np.array(rows.truths)) > 0.9


def test_mlflow_holds_one_parent_run_with_a_run_for_each_stage(stack: Installation, last_run: dict):
    """Runs nest, carry the flow run and the artifact digests, and hold metrics, system metrics, data set and picture."""
    client = MlflowClient()
    parent = client.get_run(last_run["mlflow_run_id"])
    assert parent.data.tags["prefect.flow_run_id"] == last_run["flow_run_id"]
    nested = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    by_stage = {run.data.tags["modelyard.stage"]: run for run in nested}
    assert set(by_stage) == {"snapshot", *STAGES}
    assert {run.info.status for run in [parent, *nested]} == {"FINISHED"}
    for stage, kind in [("train", "model"), ("compress", "compressed"), ("evaluate", "verdict")]:
        assert by_stage[stage].data.tags["modelyard.digest"] == last_run["artifacts"][kind]["digest"]
    train = by_stage["train"]
    assert len(client.get_metric_history(train.info.run_id, "train_loss")) == train.data.metrics["epochs"]
    eventually(
        lambda: any(name.startswith("system/") for name in client.get_run(train.info.run_id).data.metrics) or None,
        10,
        "no system metrics arrived",
    )
    assert train.data.tags["modelyard.stopped_by"] == "target"
    assert train.data.tags["modelyard.devices"].startswith("2 x cpu (")
    # Of one release the package may be called 2.13.0 and the module 2.13.0+cu130.
    assert train.data.tags["modelyard.torch"].partition("+")[0] == version("torch").partition("+")[0]
    assert float(train.data.tags["modelyard.device_memory_gb"]) > 0.1
    assert train.data.tags["modelyard.checkpoints"].endswith("/checkpoints")
    trained_on = train.inputs.dataset_inputs[0].dataset
    assert json.loads(trained_on.source)["digest"] == last_run["artifacts"]["dataset"]["digest"]
    inputs = by_stage["preprocess"].inputs.dataset_inputs
    assert json.loads(inputs[0].dataset.source)["digest"] == last_run["artifacts"]["snapshot"]["digest"]
    pictures = client.list_artifacts(by_stage["evaluate"].info.run_id)
    assert "confusion.png" in [picture.path for picture in pictures]
    pages = client.list_artifacts(by_stage["preprocess"].info.run_id)
    assert "data.html" in [page.path for page in pages]
    assert "training.png" in [picture.path for picture in client.list_artifacts(train.info.run_id)]


def test_prefect_holds_what_people_look_at(stack: Installation, last_run: dict, prefect_client: SyncPrefectClient):
    """The run has a report with its links, tables of rows, checks and confusion, the progress of training, and a task for each
    share of the partitions."""
    run = prefect_client.read_flow_run(last_run["flow_run_id"])
    below = children(prefect_client, run)
    assert sorted(below, key=lambda name: str(below[name].start_time)) == STAGES
    assert drawn_after(stack, run.id) == dict(itertools.pairwise(STAGES))
    ids = [run.id, *(child.id for child in below.values())]
    found = prefect_client.read_artifacts(artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=ids)))
    kinds = {artifact.key: artifact.type for artifact in found}
    assert kinds["lifecycle-report"] == "markdown"
    assert kinds["training"] == "progress"
    assert kinds["training-curves"] == "markdown"  # a link is one
    assert {"preprocess-rows", "preprocess-columns", "compress-forms", "evaluate-checks", "evaluate-confusion"} <= set(
        kinds
    )
    report = next(artifact.data for artifact in found if artifact.key == "lifecycle-report")
    assert last_run["mlflow_run_id"] in report
    of_data = FlowRunFilter(id=FlowRunFilterId(any_=[below["preprocess"].id]))
    shares = [one for one in prefect_client.read_task_runs(flow_run_filter=of_data) if one.name.startswith("partition")]
    assert shares
    assert {one.state_name for one in shares} == {"Completed"}
    assert all(re.fullmatch(r"partition \d of \d: .*\.parquet", one.name) for one in shares)


def test_trace_walks_from_an_answer_back_to_the_data(stack: Installation, last_run: dict):
    """From the request id and from the digest of a response to revision, registry version, verdict, package, training, data
    set, snapshot and commit, with the runs that Prefect and MLflow know; nothing is missing."""
    prediction = last_run["prediction"]
    told = modelyard("trace", prediction["request_id"], "--json")
    assert told.returncode == 0, told.stderr
    walk = json.loads(told.stdout)
    absent = [sentence for step in walk["steps"] for sentence in step["missing"]]
    assert not [sentence for sentence in absent if "no commit was recorded" not in sentence]  # outside a git checkout
    steps = {step["what"]: step for step in walk["steps"]}
    assert list(steps) == [
        "response", "endpoint revision", "registry version", "package", "verdict", "training", "data set", "snapshot"
    ]  # fmt: skip
    names = {"package": "compressed", "training": "model", "data set": "dataset", "snapshot": "snapshot"}
    for step, kind in names.items():
        assert steps[step]["name"] == last_run["artifacts"][kind]["digest"]
    assert steps["registry version"]["name"] == f"digits/{prediction['version']}"
    assert steps["training"]["facts"]["flow run is"].endswith(", Completed")
    assert all("commit" in steps[step]["facts"] for step in (*names, "verdict"))
    shown = modelyard("trace", prediction["digest"])
    for words in [*(steps[step]["name"] for step in names), "registry version", "flow run", "MLflow run", "missing"]:
        assert words in shown.stdout


def test_refused_gate_is_a_state_with_its_reasons(
    stack: Installation, last_run: dict, prefect_client: SyncPrefectClient
):
    """A candidate below the floor ends the run as Refused with the sentence; what serves goes on serving."""
    run = trigger(prefect_client, "lifecycle/digits", overrides=OWN, min_score=0.9999)
    run = finished(prefect_client, run)
    assert run.state.name == "Refused"
    assert "is below the floor 0.9999" in run.state.message
    assert "rollout" not in children(prefect_client, run)
    wanted = ArtifactFilter(
        flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]), key=ArtifactFilterKey(any_=["lifecycle-report"])
    )
    (report,) = prefect_client.read_artifacts(artifact_filter=wanted)
    assert "is below the floor 0.9999" in report.data
    assert "| evaluate | accuracy 0." in report.data
    ready = httpx.get(f"{stack.settings.serving_url}/v2/models/digits/ready", trust_env=False)
    assert ready.status_code == 200


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "train.max_epochz=3"], "train.max_epochz"),
        (["no-such-preset"], "no-such-preset"),
        pytest.param(
            ["--dataset", "s3://modelyard/nothing/here/*.parquet"],
            "s3://modelyard/nothing/here",
            marks=pytest.mark.soak,
        ),
    ],
)
def test_wrong_input_ends_the_command_with_its_name(stack: Installation, digits: str, arguments: list[str], words: str):
    """A wrong key, preset or place is one sentence and exit status 1, not a stack trace."""
    ran = modelyard("run", *arguments)
    assert ran.returncode == 1
    assert words in ran.stderr
    assert "Traceback" not in ran.stderr


def test_form_values_out_of_bounds_are_refused_before_anything_runs(
    stack: Installation, prefect_client: SyncPrefectClient
):
    """The API answers 409 and names the field; no run is created."""
    found = prefect_client.read_deployment_by_name("lifecycle/digits")
    response = httpx.post(
        f"{stack.settings.api_url}/deployments/{found.id}/create_flow_run",
        json={"parameters": {"ranks": 1000}},
        trust_env=False,
    )
    assert response.status_code == 409
    assert "ranks" in response.text


def drawn_after(stack: Installation, flow_run_id: object) -> dict[str, str]:
    """The arrows of a run's graph in the UI: stage -> the stage drawn behind it."""
    graph = httpx.get(f"{stack.settings.api_url}/flow_runs/{flow_run_id}/graph-v2", trust_env=False).json()
    names = {node_id: node["label"].partition(" ")[0] for node_id, node in graph["nodes"]}
    return {names[node_id]: names[child["id"]] for node_id, node in graph["nodes"] for child in node["children"]}
