"""What is left of a killed run, and what the next one makes of it; the way back, by hand and after a kill."""

from __future__ import annotations

import json
import signal

import httpx
import psutil
import pytest
from mlflow.tracking import MlflowClient
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterKey,
    LogFilter,
    LogFilterFlowRunId,
    TaskRunFilter,
    TaskRunFilterFlowRunId,
)
from prefect.client.schemas.objects import FlowRun
from prefect.states import Cancelling

from commands.prefect_objects import DEVICES_LIMIT, num_devices
from commands.supervision import Supervisor
from modelyard.revisions import ModelState, latest_revision, revisions_since
from modelyard.storage import Store
from tasks.results import LifecycleResult
from tests.conftest import Installation
from tests.e2e.driving import children, eventually, finished, modelyard, result_of, trigger

RANKS_GONE_SECONDS = 10
CRASHED_SECONDS = 90
# Slow epochs of two rows a step, so that there is time to kill the run in the midst of training.
SLOW = ["train.init.model=digits@champion", "train.seed=11", "train.batch_size=4", "train.max_epochs=6", "train.target=null", "evaluate.floor=0.5",
        "evaluate.allowed_drop_against_champion=1", "compress.search=null"]  # fmt: skip


@pytest.fixture
def two_versions(stack: Installation, last_run: dict, prefect_client: SyncPrefectClient) -> ModelState:
    """What the endpoint serves of digits, a version before it included: one of an earlier test, or else one made for it."""
    if digits_state(stack).previous is None:
        another = ["train.seed=12", *(override for override in SLOW if override.startswith(("evaluate", "compress")))]
        run = finished(prefect_client, trigger(prefect_client, "lifecycle/digits", overrides=another))
        assert run.state.is_completed(), run.state.message
    return digits_state(stack)


def test_killed_flow_is_closed_and_its_work_is_gone_on_with(
    stack: Installation, last_run: dict, prefect_client: SyncPrefectClient
):
    """`kill -9` of the flow process while it trains the champion on: within 10 s no rank lives, the run and all its
    children become Crashed, their devices are free long before the lease ends, and the next trigger repeats nothing before
    train and goes on from the last checkpoint."""
    run = trigger(prefect_client, "lifecycle/digits", overrides=SLOW)
    eventually(lambda: checkpoints(stack, prefect_client, run) or None, 90, "training wrote no checkpoint")
    process = eventually(lambda: flow_process(stack, run), 5, "no process carries the flow run")
    ranks = rank_processes(stack)
    assert len(ranks) == 2
    assert devices_taken(prefect_client) == min(2, num_devices(stack.settings))
    process.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(ranks, timeout=RANKS_GONE_SECONDS)
    assert not alive

    crashed = finished(prefect_client, run, 20)
    assert crashed.state.is_crashed()
    eventually(lambda: None if open_runs(prefect_client, run) else True, CRASHED_SECONDS, "children stayed open")
    assert children(prefect_client, run)["train"].state.is_crashed()
    assert devices_taken(prefect_client) == 0

    again = finished(prefect_client, trigger(prefect_client, "lifecycle/digits", overrides=SLOW))
    assert again.state.is_completed(), again.state.message
    result = LifecycleResult.model_validate(result_of(stack, again))
    assert result.stages[0].reused
    assert not result.stages[1].reused
    train = children(prefect_client, again)["train"]
    logs = prefect_client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[train.id])))
    assert any("going on after epoch" in log.message for log in logs)


@pytest.mark.soak
def test_a_cancelled_run_leaves_no_rank_and_a_checkpoint_to_go_on_from(
    stack: Installation, digits: str, prefect_client: SyncPrefectClient
):
    """Cancelled as the button in the UI does it: within 10 s no rank lives, the run ends as cancelled, and the same work, asked
    for again, goes on from the last checkpoint."""
    own = [override for override in SLOW if not override.startswith(("train.init", "train.seed"))] + ["train.seed=14"]
    run = trigger(prefect_client, "lifecycle/digits", overrides=own)
    eventually(lambda: checkpoints(stack, prefect_client, run) or None, 90, "training wrote no checkpoint")
    ranks = rank_processes(stack)
    assert len(ranks) == 2
    prefect_client.set_flow_run_state(run.id, Cancelling())
    _, alive = psutil.wait_procs(ranks, timeout=RANKS_GONE_SECONDS)
    assert not alive
    ended = finished(prefect_client, run, 60)
    assert ended.state.is_cancelled(), ended.state

    again = trigger(prefect_client, "lifecycle/digits", overrides=own)
    said = eventually(lambda: gone_on(prefect_client, again), 90, "training did not go on from a checkpoint")
    assert "going on after epoch" in said
    prefect_client.set_flow_run_state(again.id, Cancelling())
    finished(prefect_client, again, 60)


def gone_on(client: SyncPrefectClient, run: FlowRun) -> str | None:
    """What the training below a run said when its ranks were up."""
    train = children(client, run).get("train")
    if train is None:
        return None
    logs = client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[train.id])))
    return next((log.message for log in logs if "ranks on" in log.message), None)


@pytest.mark.soak
def test_a_second_version_is_rolled_out_by_steps_for_people_to_see(
    stack: Installation, two_versions: ModelState, prefect_client: SyncPrefectClient
):
    """The rollout has a page with weights and evidence, its progress and a picture; all who speak of it agree."""
    served = two_versions.stable
    wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[served.flow_run_id]))
    found = {artifact.key: artifact for artifact in prefect_client.read_artifacts(artifact_filter=wanted)}
    kinds = {key: artifact.type for key, artifact in found.items() if key}  # what tasks returned has no key
    assert kinds == {"rollout": "markdown", "rollout-progress": "progress", "rollout-timeline": "markdown"}
    pages = prefect_client.read_artifacts(
        artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["rollout"]), flow_run_id=wanted.flow_run_id)
    )
    last = max(pages, key=lambda page: page.updated).data
    assert f"version {served.version} serves" in last
    for words in ("| 1 | canary |", "| 50 | stable |", "| errors | 1 | 250 |", "replayed"):
        assert words in last
    assert "rollout.png" in [file.path for file in MlflowClient().list_artifacts(served.mlflow_run_id)]
    agreed = finished(prefect_client, trigger(prefect_client, "verify/hourly"))
    assert agreed.state.is_completed(), agreed.state.message
    told = json.loads(modelyard("history", "digits", "--json").stdout)
    assert any(f"promote digits version {served.version}" in span["reason"] for span in told)


def test_rollback_goes_back_by_one(stack: Installation, two_versions: ModelState, prefect_client: SyncPrefectClient):
    """The rollback deployment has the version before the present one answer again, as the champion."""
    previous = two_versions.previous
    assert previous
    assert served_version(stack) != previous.version
    back = finished(prefect_client, trigger(prefect_client, "rollback/digits"))
    assert back.state.is_completed(), back.state.message
    assert served_version(stack) == previous.version
    assert MlflowClient().get_model_version_by_alias("digits", "champion").version == previous.version


@pytest.mark.soak
def test_a_flow_run_waits_for_a_person(
    stack: Installation, two_versions: ModelState, prefect_client: SyncPrefectClient
):
    """With `rollout.policy.approval` the run pauses with a form; what is filled in ends up in the ledger."""
    version = two_versions.previous
    assert version
    run = trigger(
        prefect_client,
        "rollout/digits",
        candidate=version.artifact.digest,
        verdict=version.verdict.digest,
        overrides=["rollout.policy.approval=true"],
    )
    eventually(lambda: prefect_client.read_flow_run(run.id).state.is_paused() or None, 90, "the run did not pause")
    answered = httpx.post(
        f"{stack.settings.api_url}/flow_runs/{run.id}/resume",
        json={"run_input": {"approve": True, "by": "ada", "reason": "it is good"}},
        trust_env=False,
    )
    assert answered.json()["status"] == "ACCEPT", answered.text
    ended = finished(prefect_client, run)
    assert ended.state.is_completed(), ended.state.message
    assert digits_state(stack).stable.version == version.version
    said = [one for one in revisions_since(Store(stack.settings), stack.settings.endpoint_name) if one.author == "ada"]
    assert said[0].decision.reasons == ["approved by ada: it is good"]


def test_killed_endpoint_comes_back_with_what_it_served(stack: Installation, last_run: dict):
    """`kill -9` of the endpoint: the supervisor restarts it, and it answers with the same version."""
    before, supervisor = served_version(stack), Supervisor(stack.home)
    pid = supervisor.states()["endpoint"].pid
    psutil.Process(pid).send_signal(signal.SIGKILL)
    assert before
    # What the killed one started may answer for a moment longer.
    eventually(lambda: supervisor.states()["endpoint"].pid not in (None, pid) or None, 30, "it was not restarted")
    assert eventually(lambda: served_version(stack), 30, "the endpoint did not come back") == before


def flow_process(stack: Installation, run: FlowRun) -> psutil.Process | None:
    """The process that carries a flow run: a descendant of the worker whose environment names the run."""
    worker = psutil.Process(Supervisor(stack.home).states()["worker"].pid)
    for process in worker.children(recursive=True):
        try:
            if process.environ().get("PREFECT__FLOW_RUN_ID", "").replace("-", "") == run.id.hex:
                return process
        except psutil.NoSuchProcess:
            continue
    return None


def rank_processes(stack: Installation) -> list[psutil.Process]:
    """Every training rank of this installation."""
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            mine = process.environ().get("MODELYARD_HOME") == str(stack.home)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
        if mine and "modelyard.train.worker" in words and "modelyard.train.launcher" not in words:
            found.append(process)
    return found


def devices_taken(client: SyncPrefectClient) -> int:
    """Slots of the limit on devices that are held now."""
    return client.read_global_concurrency_limit_by_name(DEVICES_LIMIT).active_slots


def open_runs(client: SyncPrefectClient, run: FlowRun) -> list[str]:
    """Names of the flow and task runs below a run that have not ended."""
    below = list(children(client, run).values())
    ids = [run.id, *(child.id for child in below)]
    tasks = client.read_task_runs(task_run_filter=TaskRunFilter(flow_run_id=TaskRunFilterFlowRunId(any_=ids)))
    return [one.name for one in [*below, *tasks] if one.state is None or not one.state.is_final()]


def checkpoints(stack: Installation, client: SyncPrefectClient, run: FlowRun) -> list[str]:
    """Checkpoints of a training that is still under way."""
    train = children(client, run).get("train")
    if train is None or not train.state.is_running():
        return []
    store = Store(stack.settings)
    uncommitted: dict[str, list[str]] = {}
    for info in store.list(f"{store.root}/artifacts/model"):
        uncommitted.setdefault("/".join(info.uri.split("/")[:6]), []).append(info.uri)
    return [
        uri
        for uris in uncommitted.values()
        if not any(uri.endswith("/manifest.json") for uri in uris)
        for uri in uris
        if "/checkpoints/" in uri and uri.endswith(".json")
    ]


def digits_state(stack: Installation) -> ModelState:
    """What the endpoint should serve of the digits."""
    return latest_revision(Store(stack.settings), stack.settings.endpoint_name).models["digits"]


def served_version(stack: Installation) -> str | None:
    """The version that answers for the digits; None while nobody does."""
    try:
        response = httpx.get(f"{stack.settings.serving_url}/v2/models/digits", trust_env=False, timeout=2)
    except httpx.HTTPError:
        return None
    return response.headers.get("Modelyard-Model-Version") if response.status_code == 200 else None
