"""How soon an endpoint answers from its local cache, and what memory it then holds: a second one, beside the stack's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager, suppress
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
    shutil.rmtree(home, ignore_errors=True)  # of another part
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
    nowhere = {"S3_ENDPOINT_URL": "http://127.0.0.1:9", "S3_ACCESS_KEY": "none", "S3_SECRET_KEY": "none"}
    began = time.perf_counter()
    with beside(home, nowhere) as (url, process):
        await_answer(str(httpx.URL(server.url).copy_with(port=httpx.URL(url).port)), server)
        return {"seconds": time.perf_counter() - began, "mb": _weigh(process.pid)}


@contextmanager
def beside(home: Path, given: Mapping[str, str]) -> Generator[tuple[str, subprocess.Popen[bytes]]]:
    """A second endpoint, on that home and a port of its own: its URL, and its parent process.

    Args:
        given: settings of its own, by their names without the prefix.
    """
    port = free_ports(1, PORTS)[0]
    own = {"HOME": str(home), "ENDPOINT_PORT": str(port), **given}
    environment = os.environ | {f"MODELYARD_{name}": value for name, value in own.items()}
    # An installed package keeps its byte code; so does this one, from the warm-up on, wherever it is not to be written.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    environment["PYTHONPYCACHEPREFIX"] = str(home / "bytecode")
    with (home / "log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "modelyard.serve"], cwd=PROJECT, env=environment, stdout=log, stderr=log
        )
    try:
        yield f"{'https' if 'ENDPOINT_CERTIFICATE' in given else 'http'}://127.0.0.1:{port}", process
    finally:
        process.kill()  # its router and workers end with it
        process.wait()


def access(settings: Settings) -> dict[str, str]:
    """What a second home does not have: the keys of the store, and the admin token."""
    secrets = {"S3_SECRET_KEY": settings.s3_secret_key, "ENDPOINT_ADMIN_TOKEN": settings.endpoint_admin_token}
    given = {name: secret.get_secret_value() for name, secret in secrets.items() if secret}
    return given | {"S3_ACCESS_KEY": settings.s3_access_key or ""}


def await_answer(address: str, server: Server) -> None:
    """Ask as ``server`` is asked until somebody answers there."""
    until = time.perf_counter() + BOUND_SECONDS
    with httpx.Client(trust_env=False, timeout=5, verify=False) as client:  # noqa: S501 (a certificate of nobody's authority)
        while time.perf_counter() < until:
            with suppress(httpx.HTTPError):
                if client.post(address, content=server.body, headers=server.headers).status_code == 200:
                    return
            time.sleep(POLL_SECONDS)
    raise RuntimeError(f"{address} did not answer within {BOUND_SECONDS} s")


def await_local_state(settings: Settings, models: Collection[str]) -> None:
    """Wait until the stack's endpoint could start again with these models: its state is written after the switch."""
    file, until = settings.home / "endpoint" / "state.json", time.perf_counter() + BOUND_SECONDS
    while not file.exists() or not set(models) <= json.loads(file.read_bytes())["models"].keys():
        if time.perf_counter() > until:
            raise RuntimeError(f"{file} does not name {', '.join(models)} within {BOUND_SECONDS} s")
        time.sleep(POLL_SECONDS)


def _weigh(parent: int) -> float:
    """Of the parent that holds the socket, the router, and the largest worker."""
    process = psutil.Process(parent)
    [router] = process.children()
    workers = [worker.memory_full_info().pss for worker in router.children()]
    return (process.memory_full_info().pss + router.memory_full_info().pss + max(workers)) / MB
