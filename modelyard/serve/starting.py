"""Starts the processes behind the router. The standard library alone: the first ones start before anything is imported."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class StartedProcess:
    """A process that waits to be told something, and our end of its socket."""

    process: subprocess.Popen[bytes]
    connection: socket.socket


def start_worker() -> StartedProcess:
    """Call it on the thread that lives as long as the process: the kernel's parent-death signal follows the thread."""
    return _start("modelyard.serve.worker", "--router-pid", str(os.getpid()))


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
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
    return StartedProcess(process, ours)


def start_verifier() -> subprocess.Popen[bytes]:
    """A process that checks signatures (`verifier`); it ends when nobody has asked for a while, or with the router."""
    return subprocess.Popen(
        [sys.executable, "-m", "modelyard.serve.verifier"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    )
