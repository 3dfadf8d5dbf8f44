"""Requests per second and latency of the endpoint, between a bare onnxruntime loop and other servers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import orjson

from benchmarks import load, plain, servers
from benchmarks.figures import Contestant, Figure, Findings, Sample, compare, take_turns
from benchmarks.installation import Installation
from benchmarks.peers.onnx_model import Model
from benchmarks.servers import Server
from commands.parts import ENDPOINT, MLFLOW, STORE
from modelyard.model_package import PACKAGE_FILE, TRANSFORM_FILE, PackageSpec
from modelyard.settings import Settings
from modelyard.storage import Store
from modelyard.transform import FittedTransform

OURS, LOOP, JSON_LOOP, TRIVIAL = "endpoint", "onnxruntime loop", "the same loop with JSON", "a server that does nothing"
BARE, STARLETTE, MLFLOW_SERVE, MLSERVER = "uvicorn, bare ASGI", "uvicorn + starlette", "mlflow models serve", "MLServer"
COMMON = ("train.max_epochs=3", "train.target=null", "train.ranks=1", "evaluate.floor=0",
          "evaluate.allowed_drop_against_float=1")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A served model, with the file that it consists of and a row to ask it about."""

    name: str
    version: str
    file: Path
    columns: list[str]
    row: list[float]

    @property
    def body(self) -> bytes:
        """A request for one row in the Open Inference Protocol."""
        tensor = {"name": "features", "shape": [1, len(self.row)], "datatype": "FP32", "data": self.row}
        return json.dumps({"inputs": [tensor]}).encode()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long and how often."""

    connections: tuple[int, ...]
    seconds: float
    rounds: int


FULL = Plan(connections=(1, 16, 64), seconds=4, rounds=5)
QUICK = Plan(connections=(4,), seconds=1, rounds=1)


def run(installation: Installation, quick: bool) -> Findings:
    """Serve two models for real, and measure each of them."""
    plan = QUICK if quick else FULL
    settings = installation.up([STORE, MLFLOW, ENDPOINT])
    findings = Findings(notes=_notes(plan))
    programs = None if quick else servers.mlserver_programs()
    if programs is None:
        findings.notes.append("MLServer was not measured.")
    for subject in _subjects(settings, installation.scratch):
        with _all_servers(settings, subject, installation.scratch, programs) as contestants:
            _check(contestants[OURS], subject)
            for connections in plan.connections:
                findings.figures += _measure(contestants, subject, connections, plan, installation.scratch)
    return findings


# -- what is served ---------------------------------------------------------------------------------------


def _subjects(settings: Settings, scratch: Path) -> list[Subject]:
    """The digits model 64-128-10 and an MLP 784-128-10, through the core's own stages to the endpoint."""
    store = Store(settings)
    noise = plain.place_noise(store, width=784)
    return [
        _serve(settings, "digits", plain.place_digits(store, seed=0), (), scratch),
        _serve(settings, "mlp784", noise, ("preprocess.ranges={}",), scratch),
    ]


def _serve(settings: Settings, name: str, uri: str, overrides: tuple[str, ...], scratch: Path) -> Subject:
    session = plain.Session.open(settings)
    release = plain.run(session, uri, [*COMMON, *overrides, f"model_name={name}"])
    folder = scratch / name
    session.catalog.fetch(release.artifact, folder)
    spec = PackageSpec.model_validate_json((folder / PACKAGE_FILE).read_bytes())
    columns = FittedTransform.model_validate_json((folder / TRANSFORM_FILE).read_bytes()).columns
    row = np.random.default_rng(0).random(len(columns)).round(4).tolist()
    file = folder / spec.forms[release.form].file
    return Subject(name=name, version=release.version, file=file, columns=columns, row=row)


@contextmanager
def _all_servers(
    settings: Settings, subject: Subject, scratch: Path, mlserver_programs: Path | None
) -> Generator[Mapping[str, Server]]:
    """Everybody loaded and idle; only the one whose turn it is works."""
    ours = f"{settings.serving_url}/v2/models/{subject.name}/infer"
    model_uri = f"models:/{subject.name}/{subject.version}"
    with ExitStack() as running:
        started = {
            OURS: Server(url=ours, body=subject.body),
            TRIVIAL: running.enter_context(servers.trivial(subject.body, scratch)),
            BARE: running.enter_context(servers.uvicorn("bare_app", subject.file, subject.body, scratch)),
            STARLETTE: running.enter_context(servers.uvicorn("starlette_app", subject.file, subject.body, scratch)),
            MLFLOW_SERVE: running.enter_context(servers.mlflow_serve(model_uri, subject.columns, subject.row, scratch)),
        }
        if mlserver_programs:
            started[MLSERVER] = running.enter_context(
                servers.mlserver(mlserver_programs, subject.file, subject.body, scratch)
            )
        yield started


def _check(server: Server, subject: Subject) -> None:
    """The endpoint serves the version that the loop runs."""
    answer = httpx.post(server.url, content=server.body, timeout=10, trust_env=False).raise_for_status()
    assert answer.headers["Modelyard-Model-Version"] == subject.version


# -- measuring --------------------------------------------------------------------------------------------


def _measure(
    started: Mapping[str, Server], subject: Subject, connections: int, plan: Plan, scratch: Path
) -> list[Figure]:
    def under_load(server: Server) -> Contestant:
        def sample() -> Sample:
            result = load.fire(server.url, server.body, connections=connections, seconds=plan.seconds, scratch=scratch)
            return {"rate": result.per_second, "p50": result.p50_ms, "p99": result.p99_ms}

        return sample

    contestants: dict[str, Contestant] = {name: under_load(server) for name, server in started.items()}
    samples = take_turns({**contestants, **_loops(subject, plan)}, plan.rounds)
    where = f"{subject.name}, {connections} connections"
    rates = [
        compare(samples, "rate", subject=OURS, against=other, name=f"{where}: requests", unit="1/s", better="more")
        for other in samples
        if other != OURS
    ]
    others = [
        compare(samples, "rate", subject=STARLETTE, against=LOOP, name=f"{where}: requests", unit="1/s", better="more")
    ]
    latencies = [
        compare(samples, measure, subject=OURS, against=other, name=f"{where}: {measure}", unit="ms", better="less")
        for measure in ("p50", "p99")
        for other in started
        if other not in (OURS, TRIVIAL)
    ]
    return [*rates, *others, *latencies]


def _loops(subject: Subject, plan: Plan) -> dict[str, Contestant]:
    """The model alone, one row a call, on one thread of this process; and with a request parsed and an answer written."""
    model, body = Model(str(subject.file)), subject.body
    rows = np.asarray(orjson.loads(body)["inputs"][0]["data"], dtype=np.float32).reshape(1, -1)
    return {
        LOOP: lambda: {"rate": _rate(lambda: model.run(rows), plan.seconds / 2)},
        JSON_LOOP: lambda: {"rate": _rate(lambda: model.answer(body), plan.seconds / 2)},
    }


def _rate(act: Callable[[], object], seconds: float) -> float:
    """Calls a second."""
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        for _ in range(100):
            act()
        done += 100
    return done / (time.perf_counter() - began)


def _notes(plan: Plan) -> list[str]:
    return [
        (
            f"Load from one process of `{load.generator()}`, one row a request, {plan.seconds:g} s a stretch,"
            f" {plan.rounds} rounds; the client has the same cores as the server, and `{TRIVIAL}` shows its own limit."
        ),
        (
            "Everybody runs the same int8 ONNX file on one thread. The endpoint also checks the request, applies the fitted"
            " transform, decodes the answer and names the version in it; the uvicorn apps, MLServer and the loops do not."
        ),
        "`mlflow models serve` answers from the registered version through our loader, transform and decoding included.",
        "p50 and p99 are a whole stretch's; the figure is the median of the rounds.",
    ]
