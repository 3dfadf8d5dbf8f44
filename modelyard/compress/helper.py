"""The helper process: forks a child for each job, ends those that take too long, and says how each ended.

    python -m modelyard.compress.helper

Started by `modelyard.compress.workshop`, never by hand. Orders come as lines of JSON on standard input; it ends, with
its children, when that closes, which a dying parent sees to. It must stay single-threaded, because it forks.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import resource
import select
import signal
import sys
import time
import traceback
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelyard.compress.workshop import LOG_FILE, OUTCOME_FILE, REQUEST_FILE
from modelyard.errors import PermanentError

# Heavy, needed by every job, and without threads of their own once imported. onnxruntime and OpenVINO start some.
PRELOADED = (
    "torch", "torch._dynamo", "torch.fx", "torch.onnx", "torch.utils.flop_counter", "onnx", "onnxscript", "safetensors.torch",
    "modelyard.compress.quality", "modelyard.models.build", "modelyard.task_kinds",
)  # fmt: skip
POLL_SECONDS = 0.02
_PR_SET_PDEATHSIG = 1


@dataclass
class Child:
    """A job under way."""

    number: int
    deadline: float
    overdue: bool = False


def main() -> None:
    """Import what every job needs, then serve."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in PRELOADED:
            importlib.import_module(name)
    serve(sys.stdin.fileno(), sys.stdout.fileno())
    os._exit(0)  # torch takes seconds to leave in order, and there is nothing to put in order


def serve(orders: int, ends: int) -> None:
    """Take orders from one descriptor and tell their ends on another, until the first one closes."""
    children: dict[int, Child] = {}
    rest = b""
    while True:
        ready, _, _ = select.select([orders], [], [], POLL_SECONDS if children else None)
        if ready:
            chunk = os.read(orders, 65536)
            if not chunk:
                break
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                order = json.loads(line)
                children[_fork(order)] = Child(order["number"], time.monotonic() + order["seconds"])
        _reap(children, ends)
    for pid in children:
        os.kill(pid, signal.SIGKILL)


def _fork(order: dict[str, Any]) -> int:
    mine = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        _end_with(mine)
        _be_a_child(order)
        status = 0
    except BaseException:  # noqa: BLE001 (a child must never go on as its parent)
        traceback.print_exc()
    finally:
        os._exit(status)


def _be_a_child(order: dict[str, Any]) -> None:
    """Do the job with nothing shared but its folder."""
    folder = Path(order["folder"])
    log = os.open(folder / LOG_FILE, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if order["cores"]:
        os.sched_setaffinity(0, order["cores"])
    outcome = _outcome(order["job"], json.loads((folder / REQUEST_FILE).read_text()))
    partial = folder / f"{OUTCOME_FILE}.part"
    partial.write_text(json.dumps(outcome))
    partial.rename(folder / OUTCOME_FILE)


def _outcome(job: str, request: dict[str, Any]) -> dict[str, Any]:
    """What the job returned, or what it raised."""
    from modelyard.compress.jobs import JOBS

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return {"result": JOBS[job](request)}
    except PermanentError as failure:
        return {"error": type(failure).__name__, "message": str(failure)}
    except Exception as failure:  # noqa: BLE001 (whatever a network or a library raises is this candidate's end alone)
        traceback.print_exc()
        first = (str(failure).strip().splitlines() or [""])[0]
        return {"error": "ConversionFailed", "message": f"{type(failure).__name__}: {first}"}


def _reap(children: dict[int, Child], ends: int) -> None:
    for pid, child in list(children.items()):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            del children[pid]
            os.write(ends, json.dumps({"number": child.number, "end": _end(child, status)}).encode() + b"\n")
        elif not child.overdue and time.monotonic() > child.deadline:
            child.overdue = True
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _end(child: Child, status: int) -> str:
    """How a process ended, in words; ``done`` where it left an outcome."""
    code = os.waitstatus_to_exitcode(status)
    if child.overdue:
        return "took longer than its time and was killed"
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return "done" if code == 0 else f"ended with status {code}"


def _end_with(parent: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise SystemExit(0)  # it died before the kernel was told


if __name__ == "__main__":
    main()
