"""Starts the processes behind the router. The standard library alone: the first ones start before anything is imported."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from typing import NamedTuple, NoReturn, Protocol

# One thread a process, for texts as well: waking others costs more than most of them. Nobody embeds pydantic plugins here,
# and looking for them costs each process the packages' metadata, 15 ms. Where time zones lie is Python's default: told, it is
# not looked up in the description of how Python was built, 5 ms and 1 MB.
LEAN = {
    "PYTHONTZPATH": "/usr/share/zoneinfo:/usr/lib/zoneinfo:/usr/share/lib/zoneinfo:/etc/zoneinfo",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYDANTIC_DISABLE_PLUGINS": "__all__",
}


def give_back_memory() -> None:
    """Return what loading left free to the machine (glibc keeps it otherwise: after a large model, as much as its file)."""
    import ctypes

    with contextlib.suppress(AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


class ChildProcess(Protocol):
    """What is asked of a process, forked or not. ``poll`` gives its status once it has ended, negative for a signal."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None: ...

    def kill(self) -> None: ...

    def wait(self) -> int: ...


class StartedProcess(NamedTuple):
    """A process that waits to be told something, and our end of its socket."""

    process: ChildProcess
    connection: socket.socket


def start_worker() -> StartedProcess:
    """Call it on the thread that lives as long as the process: the kernel's parent-death signal follows the thread."""
    return _start("modelyard.serve.worker", "--router-pid", str(os.getpid()))


def fork_worker() -> StartedProcess:
    """A worker that shares with this process what both need and have loaded by now: its memory, and the time.

    Only before there is a second thread, which a fork would not copy; and on the thread of which `start_worker` tells.
    """
    from modelyard.serve import worker

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    router_pid = os.getpid()
    gc.freeze()  # what lies here already is not touched again by looking for garbage, so it stays shared
    pid = os.fork()
    if pid == 0:
        _become(lambda: worker.run(theirs, router_pid), theirs.fileno())
    theirs.close()
    return StartedProcess(ForkedProcess(pid), ours)


class ForkedProcess:
    """A child of `os.fork`, with the names of `subprocess.Popen`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._status: int | None = None

    def poll(self) -> int | None:
        return self._reap(os.WNOHANG)

    def wait(self) -> int:
        status = self._reap(0)
        assert status is not None
        return status

    def kill(self) -> None:
        if self.poll() is None:  # else its number may be another's
            os.kill(self.pid, signal.SIGKILL)

    def _reap(self, flags: int) -> int | None:
        if self._status is None:
            ended, status = os.waitpid(self.pid, flags)
            self._status = os.waitstatus_to_exitcode(status) if ended else None
        return self._status


def _become(run: Callable[[], None], kept: int) -> NoReturn:
    """In a forked child: do that and nothing else, holding no file of the parent's but its output and ``kept``."""
    status = 1
    try:
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.closerange(3, kept)
        os.closerange(kept + 1, os.sysconf("SC_OPEN_MAX"))
        gc.enable()
        run()
        status = 0
    except BaseException:  # noqa: BLE001 (it must not return into what the parent was doing)
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def start_recorder() -> StartedProcess:
    """A process that writes predictions to the bucket (`recorder`); it ends, when all is written, with its socket."""
    return _start("modelyard.serve.recorder")


def _start(module: str, *arguments: str) -> StartedProcess:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", module, "--socket-fd", str(theirs.fileno()), *arguments],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env=os.environ | LEAN,
        )
    return StartedProcess(process, ours)


def start_verifier() -> subprocess.Popen[bytes]:
    """A process that checks signatures (`verifier`); it ends when nobody has asked for a while, or with the router."""
    return subprocess.Popen(
        [sys.executable, "-m", "modelyard.serve.verifier"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    )
