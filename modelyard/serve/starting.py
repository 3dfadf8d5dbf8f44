"""Starts worker processes. The standard library alone: the first one is started before anything else is imported."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class StartedWorker:
    """A worker that waits to be told what to load, and our end of its socket."""

    process: subprocess.Popen[bytes]
    connection: socket.socket


def start_worker() -> StartedWorker:
    """Call it on the thread that lives as long as the process: the kernel's parent-death signal follows the thread."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with theirs:
        arguments = ["--socket-fd", str(theirs.fileno()), "--router-pid", str(os.getpid())]
        process = subprocess.Popen(
            [sys.executable, "-m", "modelyard.serve.worker", *arguments],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
    return StartedWorker(process, ours)
