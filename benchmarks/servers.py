"""The servers that `endpoint` compares, each started as its own process and ended with it."""

from __future__ import annotations

import json
import os
import re
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
MODEL = ("onnxruntime", "orjson", "numpy")
MLSERVER = ("mlserver==1.7.1", *MODEL)
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


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A server in an environment of its own.

    Attributes:
        packages: what is installed there, the server first.
        command: what starts it; ``{port}`` and ``{bin}`` are filled in.
        ready, path: where it says that it is ready, and where it is asked.
    """

    packages: tuple[str, ...]
    command: tuple[str, ...]
    ready: str
    path: str


PEERS = {
    "mosec": Peer(
        packages=("mosec==0.9.8", *MODEL), command=("{bin}/python", "mosec_app.py", "--port", "{port}", "--address", "127.0.0.1"),
        ready="/", path="/inference",
    ),
    "LitServe": Peer(
        packages=("litserve==0.2.19", *MODEL), command=("{bin}/python", "litserve_app.py", "{port}"), ready="/health",
        path="/predict",
    ),
    "BentoML": Peer(
        packages=("bentoml==1.4.38", *MODEL),
        command=("{bin}/bentoml", "serve", "bentoml_app:Onnx", "--host", "127.0.0.1", "--port", "{port}"), ready="/readyz",
        path="/infer",
    ),
    "KServe SDK": Peer(
        packages=("kserve==0.21.0", *MODEL),
        command=("{bin}/python", "kserve_app.py", "--http_port", "{port}", "--enable_grpc", "false"), ready="/v2/health/ready",
        path="/v2/models/bench/infer",
    ),
    "Ray Serve": Peer(packages=("ray[serve]==2.60.0", *MODEL), command=("{bin}/python", "ray_app.py", "{port}"), ready="/ready", path="/"),
}  # fmt: skip


@contextmanager
def peer(name: str, programs: Path, model: Path, body: bytes, scratch: Path) -> Generator[Server]:
    """One of `PEERS` with its one worker around the same file."""
    described = PEERS[name]
    port, log = free_ports(1, PORTS)[0], scratch / f"{name.lower().replace(' ', '-')}.log"
    command = [part.format(port=port, bin=programs) for part in described.command]
    folder = PROJECT / "benchmarks" / "peers"
    environment = {
        MODEL_VARIABLE: str(model), "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "BENTOML_DO_NOT_TRACK": "true",
        "RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_USAGE_STATS_ENABLED": "0", "HOME": str(scratch),
        "PATH": os.pathsep.join([str(programs), os.environ.get("PATH", os.defpath)]),
    }  # fmt: skip
    with _program(command, environment, log, folder) as process:
        _await_answer(f"http://127.0.0.1:{port}{described.ready}", log, process)
        server = Server(url=f"http://127.0.0.1:{port}{described.path}", body=body)
        httpx.post(server.url, content=body, headers=server.headers, timeout=10, trust_env=False).raise_for_status()
        yield server


def peer_programs(name: str) -> Path | str:
    """The programs of a peer's environment, made if need be; or why there is none."""
    return _environment(PEERS[name].packages)


def mlserver_programs() -> Path | str:
    """The programs of an environment with MLServer, or why there is none."""
    return _environment(MLSERVER)


def _environment(packages: Sequence[str]) -> Path | str:
    """The programs of an environment with these packages, made if need be; or why the index does not give it."""
    folder = ENVIRONMENTS / re.sub(r"[^\w.]+", "-", packages[0])
    programs, mark = folder / "bin", folder / ".complete"
    if mark.exists():
        return programs
    venv.create(folder, with_pip=True, clear=True)
    if problem := problem_of([str(programs / "pip"), "install", "--quiet", *packages], INSTALL_SECONDS, PROJECT):
        return problem
    mark.touch()
    return programs


def problem_of(command: Sequence[str], seconds: float, folder: Path) -> str:
    """Run a program to its end, with one thread; what went wrong, in a line, or nothing."""
    try:
        done = subprocess.run(
            command, cwd=folder, env={**os.environ, **THREADS}, capture_output=True, text=True, timeout=seconds, check=False
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"it took longer than {seconds:g} s"
    lines = done.stderr.strip().splitlines() or done.stdout.strip().splitlines()
    return "" if done.returncode == 0 else (lines or [f"it ended with status {done.returncode}"])[-1][:300]


@contextmanager
def _program(
    command: Sequence[str], environment: Mapping[str, str], log: Path, folder: Path = PROJECT
) -> Generator[subprocess.Popen[bytes]]:
    """A program with everything it started, ended with the block."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, cwd=folder, env={**os.environ, **THREADS, **environment}, stdout=output, stderr=output
        )
    try:
        yield process
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


def _await_answer(url: str, log: Path, process: subprocess.Popen[bytes] | None = None) -> None:
    """Wait until a page answers 200.

    Raises:
        RuntimeError: not within the bound, or the process has ended; ends with what the program said.
    """
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and not (process and process.poll() is not None):
        try:
            if httpx.get(url, timeout=2, trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.05)
    raise RuntimeError(f"{url} did not answer within {START_SECONDS} s:\n{log.read_text()[-3000:]}")
