"""The servers that `endpoint` compares, each started as its own process and ended with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from benchmarks.installation import PORTS, free_ports
from benchmarks.load import JSON
from benchmarks.peers.onnx_model import MODEL_VARIABLE
from commands.environment import PROJECT

START_SECONDS = 90
STOP_SECONDS = 10
INSTALL_SECONDS = 600
# Their own environments, outside the repository, kept from run to run.
ENVIRONMENTS = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "modelyard-benchmarks"
MLSERVER = ("mlserver==1.7.1", "onnxruntime")
SCRIPTS = Path(sysconfig.get_path("scripts"))
THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


@dataclass(frozen=True, kw_only=True)
class Server:
    """Something that answers; ``body`` is a request for one row in its own words."""

    url: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=lambda: JSON)


@contextmanager
def uvicorn(app: str, model: Path, body: bytes, scratch: Path) -> Generator[Server]:
    """One of our minimal apps on the server that the endpoint uses, with the same switches."""
    port = free_ports(1, PORTS)[0]
    command = [
        str(SCRIPTS / "uvicorn"), "--factory", f"benchmarks.peers.{app}:app", "--port", str(port), "--http", "httptools",
        "--loop", "uvloop", "--no-access-log", "--log-level", "warning",
    ]  # fmt: skip
    with _program(command, {MODEL_VARIABLE: str(model)}, scratch / f"{app}.log"):
        _await_answer(f"http://127.0.0.1:{port}/ready", scratch / f"{app}.log")
        yield Server(url=f"http://127.0.0.1:{port}/infer", body=body)


@contextmanager
def trivial(body: bytes, scratch: Path) -> Generator[Server]:
    """The limit of the load generator."""
    port, log = free_ports(1, PORTS)[0], scratch / "trivial.log"
    with _program([sys.executable, "-m", "benchmarks.peers.trivial_server", str(port)], {}, log):
        _await_answer(f"http://127.0.0.1:{port}/", log)
        yield Server(url=f"http://127.0.0.1:{port}/", body=body)


@contextmanager
def mlflow_serve(model_uri: str, columns: Sequence[str], row: Sequence[float], scratch: Path) -> Generator[Server]:
    """`mlflow models serve` on a registered version, in this environment."""
    port, log = free_ports(1, PORTS)[0], scratch / "mlflow-serve.log"
    command = [
        str(SCRIPTS / "mlflow"), "models", "serve", "-m", model_uri, "--env-manager", "local", "--port", str(port),
        "--workers", "1",
    ]  # fmt: skip
    body = json.dumps({"dataframe_split": {"columns": list(columns), "data": [list(row)]}}).encode()
    path = os.pathsep.join([str(SCRIPTS), os.environ.get("PATH", os.defpath)])
    with _program(command, {"PATH": path}, log):
        _await_answer(f"http://127.0.0.1:{port}/ping", log)
        yield Server(url=f"http://127.0.0.1:{port}/invocations", body=body)


@contextmanager
def mlserver(programs: Path, model: Path, body: bytes, scratch: Path) -> Generator[Server]:
    """MLServer with a custom runtime around the same file, in an environment of its own."""
    http, grpc, metrics = free_ports(3, PORTS)
    folder, log = scratch / "mlserver", scratch / "mlserver.log"
    folder.mkdir(exist_ok=True)
    settings = {"http_port": http, "grpc_port": grpc, "metrics_port": metrics, "parallel_workers": 0, "debug": False}
    (folder / "settings.json").write_text(json.dumps({**settings, "host": "127.0.0.1"}))
    described = {"name": "bench", "implementation": "mlserver_model.OnnxModel"}
    (folder / "model-settings.json").write_text(json.dumps(described))
    environment = {MODEL_VARIABLE: str(model), "PYTHONPATH": str(PROJECT / "benchmarks" / "peers")}
    with _program([str(programs / "mlserver"), "start", str(folder)], environment, log):
        _await_answer(f"http://127.0.0.1:{http}/v2/models/bench/ready", log)
        yield Server(url=f"http://127.0.0.1:{http}/v2/models/bench/infer", body=body)


def mlserver_programs() -> Path | None:
    """The programs of an environment with MLServer, made if need be; None where the index does not serve it."""
    folder = ENVIRONMENTS / MLSERVER[0].replace("==", "-")
    programs = folder / "bin"
    if (programs / "mlserver").is_file():
        return programs
    venv.create(folder, with_pip=True, clear=True)
    command = [str(programs / "pip"), "install", "--quiet", *MLSERVER]
    try:
        done = subprocess.run(command, capture_output=True, timeout=INSTALL_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return None
    return programs if done.returncode == 0 and (programs / "mlserver").is_file() else None


@contextmanager
def _program(command: Sequence[str], environment: Mapping[str, str], log: Path) -> Generator[None]:
    """A program with everything it started, ended with the block."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, cwd=PROJECT, env={**os.environ, **THREADS, **environment}, stdout=output, stderr=output
        )
    try:
        yield
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for member in family:
        if member.is_running():
            member.kill()


def _await_answer(url: str, log: Path) -> None:
    """Wait until a page answers 200.

    Raises:
        RuntimeError: not within the bound; ends with what the program said.
    """
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        try:
            if httpx.get(url, timeout=2, trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.05)
    raise RuntimeError(f"{url} did not answer within {START_SECONDS} s:\n{log.read_text()[-3000:]}")
