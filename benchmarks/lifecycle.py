"""What the lifecycle flow costs over the same core functions called plainly; start and memory of the stack."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import count

import psutil

from benchmarks import plain
from benchmarks.figures import Contestant, Figure, Findings, Sample, Samples, compare, take_turns
from benchmarks.installation import Installation
from commands import stack
from commands.environment import PROJECT
from commands.parts import MLFLOW, PREFECT, STORE
from commands.stack import PartReady
from modelyard.settings import Settings
from modelyard.storage import Store

# A fixed number of epochs and no gate, so that each round does the same work on its own data.
OVERRIDES = (
    "train.target=null",
    "train.max_epochs=10",
    "evaluate.floor=0",
    "evaluate.allowed_drop_against_float=1",
)
SERVERS = (STORE.name, MLFLOW.name, PREFECT.name)
PROCESS_SECONDS = 300
# Names of the contestants: how the same stages are called, in a process that is warm, or in one of their own.
PLAIN, FLOW, EMPTY = "core, plainly", "flow, in process", "empty 5-step flow, in process"
PLAIN_PROCESS, WORKER = "core, plainly, as a process", "flow, by the worker"
EMPTY_PROCESS, EMPTY_WORKER = "empty 5-step flow, as a process", "empty 5-step flow, by the worker"


def run(installation: Installation, quick: bool) -> Findings:
    """Start the stack on an empty home and again, run the lifecycle every way in turns, weigh the stack."""
    starts = _starts(installation, rounds=0 if quick else 2)
    samples = take_turns(_contestants(installation.settings), rounds=1 if quick else 3, warmups=0)
    return Findings(
        figures=[
            *_overheads(samples, "first", "first run"),
            *_overheads(samples, "again", "unchanged second run"),
            *_added(samples),
            *starts,
            *_memory(installation.settings),
        ],
        notes=[
            (
                "The digits preset with 10 epochs and 2 ranks, each run on the data in an order of its own and under a model"
                " name of its own, so that nothing is found in a first run and everything in the second."
            ),
            (
                "The core is the same six functions, with neither Prefect nor MLflow runs around them; the version is"
                " registered and the endpoint takes it over every time."
            ),
            "By the worker: from the trigger to the final state, against a process that imports and calls the core.",
            "Memory after all of that, with every model of the rounds loaded by the endpoint. PSS counts shared pages once.",
        ],
    )


# -- runs -------------------------------------------------------------------------------------------------


def _contestants(settings: Settings) -> dict[str, Contestant]:
    _quiet_console()
    from benchmarks.peers import empty_flow  # Prefect reads its settings at import: not before there is a stack
    from flows.lifecycle import lifecycle

    empty_flow.deploy(settings.work_pool)
    rounds, store = count(1), Store(settings)
    plain_session = plain.Session.open(settings)

    def twice(act: Callable[[str, Sequence[str]], object]) -> Contestant:
        def sample() -> Sample:
            number = next(rounds)
            uri = plain.place_digits(store, seed=number)
            overrides = [*OVERRIDES, f"model_name=bench-{number}"]
            return {name: _seconds(lambda: act(uri, overrides)) for name in ("first", "again")}

        return sample

    def once(act: Callable[[], object]) -> Contestant:
        def sample() -> Sample:
            seconds = _seconds(act)
            return {"first": seconds, "again": seconds}

        return sample

    return {
        PLAIN: twice(lambda uri, overrides: plain.run(plain_session, uri, overrides)),
        FLOW: twice(lambda uri, overrides: lifecycle(dataset_uri=uri, overrides=list(overrides))),
        EMPTY: once(empty_flow.empty),
        PLAIN_PROCESS: twice(lambda uri, overrides: _process("benchmarks.plain", uri, *overrides)),
        WORKER: twice(_by_worker),
        EMPTY_PROCESS: once(lambda: _process("benchmarks.peers.empty_flow")),
        EMPTY_WORKER: once(empty_flow.by_worker),
    }


def _by_worker(uri: str, overrides: Sequence[str]) -> None:
    from benchmarks.peers.empty_flow import follow

    follow("lifecycle/digits", {"dataset_uri": uri, "overrides": list(overrides)})


def _process(module: str, *arguments: str) -> None:
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=PROCESS_SECONDS, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}:\n{done.stderr[-3000:]}")


def _quiet_console() -> None:
    """Logs still go to the servers, which is part of what a flow costs."""
    os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "CRITICAL"
    os.environ["MLFLOW_LOGGING_LEVEL"] = "WARNING"
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"


def _seconds(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


# -- figures ----------------------------------------------------------------------------------------------


def _overheads(samples: Samples, measure: str, name: str) -> list[Figure]:
    pairs = [(FLOW, PLAIN), (WORKER, PLAIN_PROCESS), (WORKER, EMPTY_WORKER)]
    return [
        compare(samples, measure, subject=subject, against=against, name=name, unit="s", better="less")
        for subject, against in pairs
    ]


def _added(samples: Samples) -> list[Figure]:
    """What the flow adds to the core, in units of an empty flow on the same server; and Prefect's own share."""
    added = [("in process", FLOW, PLAIN, EMPTY), ("by the worker", WORKER, PLAIN_PROCESS, EMPTY_WORKER)]
    figures = [
        Figure(
            name=f"what the flow adds, {where}, first run",
            subject=f"{subject} - {base}",
            against=floor,
            unit="s",
            better="less",
            values=[
                mine["first"] - theirs["first"] for mine, theirs in zip(samples[subject], samples[base], strict=True)
            ],
            reference=[sample["first"] for sample in samples[floor]],
        )
        for where, subject, base, floor in added
    ]
    floor = compare(
        samples,
        "first",
        subject=EMPTY_WORKER,
        against=EMPTY_PROCESS,
        name="the worker's own start",
        unit="s",
        better="less",
    )
    return [*figures, floor]


def _starts(installation: Installation, rounds: int) -> list[Figure]:
    """The whole stack's start against its slowest part alone, on an empty home and then on one with data."""
    samples: dict[str, list[tuple[float, float]]] = {"on an empty home": [], "again": []}
    for _ in range(rounds):
        installation.clean()
        for starts in samples.values():
            starts.append(_start(installation))
            installation.down()
    installation.up()
    return [
        Figure(
            name=f"start of the stack, {when}",
            subject="all five parts",
            against="the slowest of them",
            unit="s",
            better="less",
            values=[whole for whole, _ in pairs],
            reference=[slowest for _, slowest in pairs],
        )
        for when, pairs in samples.items()
        if pairs
    ]


def _start(installation: Installation) -> tuple[float, float]:
    parts: list[PartReady] = []
    whole = _seconds(lambda: installation.up(report=parts.append))
    return whole, max(part.seconds for part in parts)


def _memory(settings: Settings) -> list[Figure]:
    """The whole stack with its supervisor, against the three servers that it consists of."""
    pids = {part.part: part.pid for part in stack.status(settings) if part.pid}
    daemon = psutil.Process(next(iter(pids.values()))).parent()
    assert daemon, "the supervisor is every part's parent"
    figures = []
    for kind in ("rss", "pss"):
        try:
            whole = _tree_bytes(daemon, kind)
            servers = sum(_tree_bytes(psutil.Process(pids[name]), kind) for name in SERVERS)
        except psutil.AccessDenied:  # PSS of others' processes is root's
            continue
        figures.append(
            Figure(
                name=f"memory of the stack, {kind.upper()}",
                subject="everything",
                against="store, MLflow and Prefect server",
                unit="MB",
                better="less",
                values=[whole / 2**20],
                reference=[servers / 2**20],
            )
        )
    return figures


def _tree_bytes(root: psutil.Process, kind: str) -> int:
    return sum(getattr(process.memory_full_info(), kind) for process in _tree(root))


def _tree(root: psutil.Process) -> list[psutil.Process]:
    return [root, *root.children(recursive=True)]
