"""Following a flow run from its trigger to its end: each stage with its time and the number that matters."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterKey,
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterParentFlowRunId,
    LogFilter,
    LogFilterFlowRunId,
    LogFilterLevel,
    LogFilterTimestamp,
)
from prefect.client.schemas.objects import Flow, FlowRun, State
from prefect.exceptions import ObjectNotFound
from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from modelyard.errors import NotFound
from modelyard.settings import Settings

POLL_SECONDS = 0.5
PICKUP_SECONDS = 60.0
WARNING = 30
ENGINE_WORDS = ("Encountered exception during execution", "Engine execution exited", "Finished in state")
_EARLIEST = datetime.min.replace(tzinfo=UTC)
STAGES = ("preprocess", "train", "compress", "evaluate", "rollout")


@dataclass
class Outcome:
    """How a followed run ended: with what its flow returned, as JSON, or with a problem."""

    flow_run_url: str
    mlflow_run_url: str = ""
    seconds: float = 0.0
    result: Any = None
    problem: str = ""


@dataclass
class _Stage:
    name: str
    run: FlowRun
    words: str = ""
    state: str = ""

    @property
    def seconds(self) -> float:
        return self.run.estimated_run_time.total_seconds()


@dataclass
class _View:
    """What is on the screen: the stages to come, and those that began."""

    expected: Sequence[str] = ()
    began: float = field(default_factory=time.monotonic)
    stages: dict[str, _Stage] = field(default_factory=dict)
    state: str = "Scheduled"

    def __rich__(self) -> Group:
        table = Table("stage", "state", "seconds", "result", box=None, pad_edge=False, header_style="dim")
        for name in [*self.expected, *(name for name in self.stages if name not in self.expected)]:
            table.add_row(*_cells(name, self.stages.get(name)))
        elapsed = time.monotonic() - self.began
        return Group(table, Spinner("dots", Text(f"{self.state}, {elapsed:.0f} s")))


def follow(
    settings: Settings, deployment: str, parameters: dict[str, Any], timeout: float, console: Console
) -> Outcome:
    """Trigger a deployment and stay with its run until it ends.

    Raises:
        NotFound: there is no such deployment.
    """
    with get_client(sync_client=True) as client:
        run = _trigger(client, deployment, parameters)
        url = f"{settings.api_url.removesuffix('/api')}/runs/flow-run/{run.id}"
        console.print(f"flow run [bold]{run.name}[/] {url}")
        view, outcome = _View(STAGES if deployment.startswith("lifecycle/") else ()), Outcome(flow_run_url=url)
        run = _watch(client, run, view, timeout, console)
        console.print(_final_table(view))
        outcome.seconds = time.monotonic() - view.began
        if run.state is None or not run.state.is_final():
            outcome.problem = f"{run.name} is still {run.state_name} after {timeout:g} s; it goes on: {url}"
        elif not run.state.is_completed():
            outcome.problem = _problem(view, run, url)
        else:
            outcome.result = run.state.result()
            outcome.mlflow_run_url = _mlflow_url(settings, outcome.result["mlflow_run_id"])
        return outcome


def _trigger(client: SyncPrefectClient, deployment: str, parameters: dict[str, Any]) -> FlowRun:
    try:
        found = client.read_deployment_by_name(deployment)
    except ObjectNotFound:
        raise NotFound(f"there is no deployment {deployment!r}; `modelyard up` makes those of prefect.yaml") from None
    return client.create_flow_run_from_deployment(found.id, parameters=parameters)


def _watch(client: SyncPrefectClient, run: FlowRun, view: _View, timeout: float, console: Console) -> FlowRun:
    began, printed, flows, warned = datetime.now(UTC), set[UUID](), dict[UUID, Flow](), False
    with Live(view, console=console, refresh_per_second=8, transient=True):
        while True:
            run = client.read_flow_run(run.id)
            view.state = run.state_name or "Scheduled"
            _update_stages(client, run, view, flows)
            _print_warnings(client, [run, *(stage.run for stage in view.stages.values())], printed, began, console)
            elapsed = time.monotonic() - view.began
            if (run.state and run.state.is_final()) or elapsed > timeout:
                return run
            if elapsed > PICKUP_SECONDS and view.state in ("Scheduled", "Late") and not warned:
                console.print("[yellow]no worker has picked the run up yet; see `modelyard status`[/]")
                warned = True
            time.sleep(POLL_SECONDS)


def _update_stages(client: SyncPrefectClient, run: FlowRun, view: _View, flows: dict[UUID, Flow]) -> None:
    children = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[run.id]))
    )
    for child in sorted(children, key=lambda child: child.created or datetime.now(UTC)):
        if child.flow_id not in flows:
            flows[child.flow_id] = client.read_flow(child.flow_id)
        name = flows[child.flow_id].name
        known = view.stages.get(name)
        if known and known.run.state and known.run.state.is_final():
            continue
        stage = view.stages[name] = _Stage(name, child, known.words if known else "", child.state_name or "")
        _add_words(client, stage)


def _add_words(client: SyncPrefectClient, stage: _Stage) -> None:
    """The stage's last word: its progress while it runs; its task's state and message once it is done."""
    run = stage.run
    if run.state and run.state.is_final():
        tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])))
        # The one that ended last: some have tasks of their own, which began after them.
        last = max(tasks, key=lambda task: task.end_time or _EARLIEST, default=None)
        if not run.state.is_completed():
            stage.words = _said(run.state).partition("\n")[0]
        elif last and last.state:
            stage.words, stage.state = last.state.message or "", last.state.name or stage.state
        return
    progress = client.read_artifacts(
        artifact_filter=ArtifactFilter(
            flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]),
            key=ArtifactFilterKey(any_=["preprocess-progress", "training", "rollout-progress"]),
        )
    )
    if progress:
        stage.words = progress[0].description or ""


def _print_warnings(
    client: SyncPrefectClient, runs: Iterable[FlowRun], printed: set[UUID], since: datetime, console: Console
) -> None:
    """Warnings and worse of these runs, each once. What Prefect says of an exception is in the run's state too."""
    logs = client.read_logs(
        LogFilter(
            level=LogFilterLevel(ge_=WARNING),
            flow_run_id=LogFilterFlowRunId(any_=[run.id for run in runs]),
            timestamp=LogFilterTimestamp(after_=since),
        ),
        limit=200,
    )
    for log in sorted(logs, key=lambda log: log.timestamp):
        if log.id in printed or log.message.startswith(ENGINE_WORDS):
            continue
        printed.add(log.id)
        console.print(f"{log.timestamp:%H:%M:%S} {log.message.splitlines()[0]}", style="yellow", markup=False)


def _problem(view: _View, run: FlowRun, url: str) -> str:
    failed = [stage for stage in view.stages.values() if stage.run.state and not stage.run.state.is_completed()]
    where = f"stage {failed[-1].name}" if failed else "the run"
    state = failed[-1].run.state if failed else run.state
    name, message = (state.name, _said(state) or "no message") if state else ("Unknown", "no state")
    return f"{where} {name}: {message}\nlook at {url} and at `modelyard logs worker`"


def _said(state: State) -> str:
    """What a state says, without what Prefect puts in front of an exception."""
    return (state.message or "").removeprefix("Flow run encountered an exception: ")


def _mlflow_url(settings: Settings, run_id: str) -> str:
    from modelyard.tracking import Tracker

    return Tracker(settings).run_url(run_id)


def _final_table(view: _View) -> Table:
    table = Table("stage", "state", "seconds", "result", box=None, pad_edge=False, header_style="dim")
    for name, stage in view.stages.items():
        table.add_row(*_cells(name, stage))
    return table


def _cells(name: str, stage: _Stage | None) -> tuple[str, str, str, str]:
    if stage is None:
        return name, "[dim]waiting[/]", "", ""
    state = stage.state
    colour = {"Completed": "green", "Cached": "green", "Running": "cyan", "Pending": "cyan"}.get(state, "red")
    return name, f"[{colour}]{state}[/]", f"{stage.seconds:.1f}", stage.words
