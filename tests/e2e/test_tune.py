"""A tuning as people start, kill and find it."""

from __future__ import annotations

import json
import signal
from typing import Any

import psutil
import pytest
import yaml
from mlflow.tracking import MlflowClient
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Catalog
from modelyard.storage import Store
from modelyard.tune import Ask, Told
from modelyard.tune.trials import ASKED_FILE, told_by
from tests.conftest import Installation
from tests.e2e.driving import eventually, finished, modelyard, result_of, trigger
from tests.e2e.test_recovery import flow_process

SPACE = {
    "train.optimizer.learning_rate": {"low": 0.0001, "high": 0.1, "log": True},
    "train.batch_size": {"low": 16, "high": 128, "step": 16},
    "preprocess.transform.scaling": {"choices": ["minmax", "standard"]},
}


OWN_TRAIN = 0.71
OWN_SPLIT = f"preprocess.split={{train: {OWN_TRAIN}, validation: 0.14, test: 0.15}}"


def settings_of(seed: int, **tune: Any) -> list[str]:
    told = {"space": SPACE, "seed": seed, "startup": 2, **tune}
    return [f"tune={json.dumps(told)}", "train.max_epochs=3", "train.ranks=1"]


def trials(stack: Installation, seed: int) -> dict[int, tuple[Ask, Told, ArtifactRef]]:
    """Every trial in the bucket of the tunings with a seed, by number."""
    catalog = Catalog(Store(stack.settings))
    found = {}
    for info in catalog.store.list(f"{catalog.store.root}/artifacts/trial"):
        if info.uri.endswith("/manifest.json"):
            product = catalog.find("trial", info.uri.split("/")[-2])
            if product and product.manifest.content.config["tune"]["seed"] == seed:
                ask = Ask.model_validate(product.manifest.content.facts["ask"])
                found[ask.number] = ask, told_by(product), product.ref
    return found


@pytest.mark.soak
def test_a_tuning_can_be_looked_at(stack: Installation, digits: str, prefect_client: SyncPrefectClient):
    """The command says who won; a nested MLflow run for each trial, the table and the pictures; the preset it leaves
    is one whose training is found."""
    ran = modelyard("run", "digits", "--deployment", "tune/digits", "--set", settings_of(3, trials=2)[0],
                    "--set", "train.max_epochs=1", "--set", "train.ranks=1")  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "accuracy 0." in ran.stdout
    uri = next(line.split()[-1] for line in ran.stdout.splitlines() if line.startswith("preset"))
    store, made = Store(stack.settings), trials(stack, 3)
    assert sorted(made) == [0, 1]
    assert made[0][0].parameters["train.optimizer.learning_rate"] == 0.003  # the preset as it is
    best = max(made.values(), key=lambda one: (one[1].value, -one[1].loss))
    tree = yaml.safe_load(store.get(uri))
    assert tree["train"]["optimizer"]["learning_rate"] == best[0].parameters["train.optimizer.learning_rate"]
    assert tree["train"]["target"] is None
    client = MlflowClient()
    parent = client.search_runs(
        [client.get_experiment_by_name("digits").experiment_id], "tags.`modelyard.stage` = 'tune'"
    )[0]
    nested = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert {run.info.run_name for run in nested} >= {"trial 0", "trial 1", "train"}
    assert next(run for run in nested if run.info.run_name == "train").data.tags["reused_from"]
    assert all("best_accuracy" in run.data.metrics for run in nested)
    files = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert files >= {"trials.png", "trials.json", "best.yaml"}
    wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[parent.data.tags["prefect.flow_run_id"]]))
    kinds = {found.key: found.type for found in prefect_client.read_artifacts(artifact_filter=wanted)}
    assert {"tune-trials": "table", "tune-picture": "image", "tune-preset": "markdown"}.items() <= kinds.items()


@pytest.mark.soak
def test_a_killed_tuning_goes_on_with_the_same_trials(
    stack: Installation, digits: str, prefect_client: SyncPrefectClient
):
    """`kill -9` of the flow in its third trial: the next run finds what was tried, goes on with the one it was at, and
    ends with the trials of one that was never killed. Some are pruned, and the test split is nowhere read."""
    _hide_test_split(stack, prefect_client)
    overrides = [*settings_of(5, trials=8), OWN_SPLIT]
    run = trigger(prefect_client, "tune/digits", overrides=overrides)
    eventually(lambda: _is_at_trial(stack, 5, 2) or None, 150, "the third trial did not begin")
    process = eventually(lambda: flow_process(stack, run), 5, "no process carries the flow run")
    family = [process, *psutil.Process(process.pid).children(recursive=True)]
    process.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive
    before = trials(stack, 5)
    assert sorted(before) == [0, 1]
    again = finished(prefect_client, trigger(prefect_client, "tune/digits", overrides=overrides), 400)
    assert again.state.is_completed(), again.state.message
    after = trials(stack, 5)
    assert sorted(after) == list(range(8))
    assert {number: after[number][2] for number in before} == {number: one[2] for number, one in before.items()}
    assert {told.outcome for _, told, _ in after.values()} >= {"finished", "pruned"}
    for _, told, _ in after.values():
        assert told.outcome != "failed", told.reason
    result = result_of(stack, again)
    assert result["value"] == max(told.value for _, told, _ in after.values() if told.outcome == "finished")


@pytest.mark.soak
def test_a_tuning_in_which_all_fails_says_why(stack: Installation, digits: str, prefect_client: SyncPrefectClient):
    """Each trial's reason is in the flow's state, and the numbers of a lost loss are kept."""
    overrides = [*settings_of(7, trials=2), "train.optimizer.name=sgd", "train.stop.diverged_above=0.0001"]
    run = finished(prefect_client, trigger(prefect_client, "tune/digits", overrides=overrides))
    assert run.state.is_failed()
    for words in ("no trial was finished", "trial 0: NonFiniteLoss", "trial 1: NonFiniteLoss"):
        assert words in run.state.message
    assert {told.outcome for _, told, _ in trials(stack, 7).values()} == {"failed"}


@pytest.mark.soak
def test_the_best_configuration_is_taken_to_the_endpoint(stack: Installation, digits: str):
    """`tune.then_lifecycle` rolls out what was found, from the very training of its trial."""
    tuned = settings_of(9, trials=2, then_lifecycle=True)
    sets = [
        part
        for setting in [*tuned, "evaluate.floor=0.5", "evaluate.allowed_drop_against_champion=1"]
        for part in ("--set", setting)
    ]
    ran = modelyard("run", "digits", "--deployment", "tune/digits", *sets)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "prediction" in ran.stdout
    stages = json.loads((stack.home / "last-run.json").read_text())["stages"]
    assert [stage["stage"] for stage in stages if stage.get("reused")][:2] == ["preprocess", "train"]


def _is_at_trial(stack: Installation, seed: int, number: int) -> bool:
    """Whether trials up to this one are over, and this one was begun."""
    if sorted(trials(stack, seed)) != list(range(number)):
        return False
    store = Store(stack.settings)
    asked = [info.uri for info in store.list(f"{store.root}/artifacts/trial") if info.uri.endswith(ASKED_FILE)]
    return any(Ask.model_validate_json(store.get(uri)).number == number for uri in asked)


def _hide_test_split(stack: Installation, client: SyncPrefectClient) -> None:
    """Make the data sets that will be wanted, then delete the rows of their test split."""
    for scaling in ("minmax", "standard"):
        made = trigger(client, "preprocess/digits", overrides=[OWN_SPLIT, f"preprocess.transform.scaling={scaling}"])
        assert finished(client, made).state.is_completed()
    catalog, hidden = Catalog(Store(stack.settings)), 0
    for info in list(catalog.store.list(f"{catalog.store.root}/artifacts/dataset")):
        found = catalog.find("dataset", info.uri.split("/")[-2]) if info.uri.endswith("/manifest.json") else None
        if found and found.manifest.content.config["split"]["train"] == OWN_TRAIN:
            names = [name for name in found.manifest.content.files if name.startswith("test/")]
            hidden += catalog.store.delete([found.manifest.file_uri(found.ref.uri, name) for name in names])
    assert hidden
