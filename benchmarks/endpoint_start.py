"""How soon an endpoint answers from its local cache, and what memory it then holds: a second one, beside the stack's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import httpx
import psutil

from benchmarks.figures import Sample
from benchmarks.installation import PORTS, free_ports
from benchmarks.servers import Server
from commands.environment import PROJECT
from modelyard.settings import Settings

BOUND_SECONDS = 30
POLL_SECONDS = 0.005
MB = 1e6


def copy_home(settings: Settings, scratch: Path) -> Path:
    """A home with the state and the cache that the stack's endpoint has by now, the keys it trusts, and nothing else."""
    home = scratch / "second-home"
    shutil.copytree(settings.home / "endpoint", home / "endpoint")
    shutil.copytree(settings.trusted_keys_folder, home / "trusted-keys")
    return home


def start(home: Path, server: Server) -> Sample:
    """Start it with the bucket away, ask as ``server`` is asked until it answers, weigh it, end it.

    Returns:
        ``seconds`` from the start of the process to the first answer; ``mb``, proportional set size of the parent,
        the router and its largest worker.

    Raises:
        RuntimeError: no answer within the bound.
    """
    port = free_ports(1, PORTS)[0]
    nowhere = {"S3_ENDPOINT_URL": "http://127.0.0.1:9", "S3_ACCESS_KEY": "none", "S3_SECRET_KEY": "none"}
    given = {"HOME": str(home), "ENDPOINT_PORT": str(port), **nowhere}
    environment = os.environ | {f"MODELYARD_{name}": value for name, value in given.items()}
    # An installed package keeps its byte code; so does this one, from the warm-up on, wherever it is not to be written.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    environment["PYTHONPYCACHEPREFIX"] = str(home / "bytecode")
    address = httpx.URL(server.url).copy_with(port=port)
    began = time.perf_counter()
    with (home / "log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "modelyard.serve"], cwd=PROJECT, env=environment, stdout=log, stderr=log
        )
    try:
        _await_answer(address, server, began + BOUND_SECONDS)
        return {"seconds": time.perf_counter() - began, "mb": _weigh(process.pid)}
    finally:
        process.kill()  # its router and workers end with it
        process.wait()


def _await_answer(address: httpx.URL, server: Server, until: float) -> None:
    with httpx.Client(trust_env=False, timeout=5) as client:
        while time.perf_counter() < until:
            with suppress(httpx.HTTPError):
                if client.post(address, content=server.body, headers=server.headers).status_code == 200:
                    return
            time.sleep(POLL_SECONDS)
    raise RuntimeError(f"{address} did not answer within {BOUND_SECONDS} s")


def _weigh(parent: int) -> float:
    """Of the parent that holds the socket, the router, and the largest worker."""
    process = psutil.Process(parent)
    [router] = process.children()
    workers = [worker.memory_full_info().pss for worker in router.children()]
    return (process.memory_full_info().pss + router.memory_full_info().pss + max(workers)) / MB
