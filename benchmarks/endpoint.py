"""Requests per second and latency of the endpoint, between a bare onnxruntime loop and other servers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import orjson

from benchmarks import (
    endpoint_guarded,
    endpoint_start,
    endpoint_takeover,
    endpoint_texts,
    load,
    plain,
    servers,
    way_back,
)
from benchmarks.figures import Contestant, Figure, Findings, Sample, compare, take_turns
from benchmarks.installation import Installation
from benchmarks.peers.onnx_model import Model
from benchmarks.servers import Server
from commands.parts import ENDPOINT, MLFLOW, STORE
from modelyard.model_package import PACKAGE_FILE, TRANSFORM_FILE, PackageSpec
from modelyard.settings import Settings
from modelyard.storage import Store
from modelyard.transform import FittedTransform

OURS, BINARY, LOOP, JSON_LOOP = "endpoint", "endpoint, binary", "onnxruntime loop", "the same loop with JSON"
TRIVIAL, BOUND = "a server that does nothing", "the bound"
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

    @property
    def binary(self) -> tuple[bytes, dict[str, str]]:
        """The same row as binary data, the answer likewise; and the headers that go with it."""
        raw = np.array(self.row, dtype="<f4").tobytes()
        tensor = {"name": "features", "shape": [1, len(self.row)], "datatype": "FP32"}
        described = tensor | {"parameters": {"binary_data_size": len(raw)}}
        head = json.dumps({"inputs": [described], "parameters": {"binary_data_output": True}}).encode()
        return head + raw, {"Inference-Header-Content-Length": str(len(head))}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long and how often."""

    connections: tuple[int, ...]
    seconds: float
    rounds: int


# Promised of the model MLP 784-128-10 at 64 connections, as ratios to the loop, and in ms.
PROMISED_AT = ("mlp784", 64)
PROMISED = {OURS: 0.12, BINARY: 0.17}
P99_MS = 10.0
START_SECONDS, MEMORY_MB = 0.5, 110.0
FULL = Plan(connections=(1, 64), seconds=3, rounds=5)
PARTS = ("requests", "small", "guarded", "start", "way-back", "takeover", "texts")
TEXT_CONNECTIONS = (8, 64)
QUICK = Plan(connections=(4,), seconds=1, rounds=1)


def run(installation: Installation, quick: bool, parts: Sequence[str] = PARTS) -> Findings:
    """Serve models for real, and measure each of them."""
    plan = QUICK if quick else FULL
    settings = installation.up([STORE, MLFLOW, ENDPOINT])
    findings = Findings()
    if models := [make for part, make in MODELS.items() if part in parts]:
        findings.add(_measure_requests(settings, models, plan, installation.scratch, quick=quick))
    if {"guarded", "start", "way-back"} & set(parts):
        subject = _mlp(settings, installation.scratch)
        ours = Server(url=f"{settings.serving_url}/v2/models/{subject.name}/infer", body=subject.body)
        _check(ours, subject)
        if "guarded" in parts:
            endpoint_start.await_local_state(settings, [subject.name])
            body, headers = subject.binary
            forms = {"JSON": ours, "binary": Server(url=ours.url, body=body, headers=headers)}
            number = plan.connections[-1]
            findings.add(
                endpoint_guarded.measure(settings, forms, number, plan.seconds, plan.rounds, installation.scratch)
            )
        if "start" in parts:
            findings.figures += _measure_start(settings, ours, plan, installation.scratch)
        if "way-back" in parts:
            findings.add(_measure_way_back(settings, subject, ours, plan, installation.scratch))
    if "takeover" in parts:
        findings.add(endpoint_takeover.measure(settings, plan.rounds))
    if "texts" in parts:
        numbers = QUICK.connections if quick else TEXT_CONNECTIONS
        findings.add(endpoint_texts.measure(settings, numbers, plan.seconds, min(plan.rounds, 3), installation.scratch))
    return findings


def _measure_requests(
    settings: Settings, models: Sequence[Callable[[Settings, Path], Subject]], plan: Plan, scratch: Path, *, quick: bool
) -> Findings:
    """Perceptrons behind everybody's server."""
    findings = Findings(notes=_notes(plan))
    programs: dict[str, Path] = {}
    for name in [] if quick else [MLSERVER, *servers.PEERS]:
        found = servers.mlserver_programs() if name == MLSERVER else servers.peer_programs(name)
        if isinstance(found, Path):
            programs[name] = found
        else:
            findings.notes.append(f"{name} was not measured: {found}")
    for subject in [make(settings, scratch) for make in models]:
        with _all_servers(settings, subject, scratch, programs) as (contestants, missing):
            findings.notes += missing
            for name in (OURS, BINARY):
                _check(contestants[name], subject)
            for connections in plan.connections:
                findings.figures += _measure(contestants, subject, connections, plan, scratch)
    return findings


# -- what is served ---------------------------------------------------------------------------------------


def _digits(settings: Settings, scratch: Path) -> Subject:
    """The digits model 64-128-10, through the core's own stages to the endpoint."""
    return _serve(settings, "digits", plain.place_digits(Store(settings), seed=0), (), scratch)


def _mlp(settings: Settings, scratch: Path) -> Subject:
    """An MLP 784-128-10 likewise; what was made before is found, and served on."""
    noise = plain.place_noise(Store(settings), width=784)
    return _serve(settings, PROMISED_AT[0], noise, ("preprocess.ranges={}",), scratch)


# The part of the benchmark that a model is measured in.
MODELS: Mapping[str, Callable[[Settings, Path], Subject]] = {"requests": _mlp, "small": _digits}


def _serve(settings: Settings, name: str, uri: str, overrides: tuple[str, ...], scratch: Path) -> Subject:
    session = plain.Session.open(settings)
    release = plain.run(session, uri, [*COMMON, *overrides, f"model_name={name}"])
    folder = scratch / f"{name}-{release.version}"
    session.catalog.fetch(release.artifact, folder)
    spec = PackageSpec.model_validate_json((folder / PACKAGE_FILE).read_bytes())
    columns = FittedTransform.model_validate_json((folder / TRANSFORM_FILE).read_bytes()).columns
    row = np.random.default_rng(0).random(len(columns)).round(4).tolist()
    file = folder / spec.forms[release.form].file
    return Subject(name=name, version=release.version, file=file, columns=columns, row=row)


@contextmanager
def _all_servers(
    settings: Settings, subject: Subject, scratch: Path, programs: Mapping[str, Path]
) -> Generator[tuple[Mapping[str, Server], list[str]]]:
    """Everybody loaded and idle, only the one whose turn it is works; and why some did not start."""
    ours = f"{settings.serving_url}/v2/models/{subject.name}/infer"
    model_uri = f"models:/{subject.name}/{subject.version}"
    missing: list[str] = []
    with ExitStack() as running:
        started = {
            OURS: Server(url=ours, body=subject.body),
            BINARY: Server(url=ours, body=subject.binary[0], headers=subject.binary[1]),
            TRIVIAL: running.enter_context(servers.trivial(subject.body, scratch)),
            BARE: running.enter_context(servers.uvicorn("bare_app", subject.file, subject.body, scratch)),
            STARLETTE: running.enter_context(servers.uvicorn("starlette_app", subject.file, subject.body, scratch)),
            MLFLOW_SERVE: running.enter_context(servers.mlflow_serve(model_uri, subject.columns, subject.row, scratch)),
        }
        for name, folder in programs.items():
            start = servers.mlserver if name == MLSERVER else partial(servers.peer, name)
            try:
                started[name] = running.enter_context(start(folder, subject.file, subject.body, scratch))
            except (RuntimeError, httpx.HTTPError) as failure:
                missing.append(f"{name} was not measured: {str(failure).strip().splitlines()[-1][:200]}")
        yield started, missing


def _check(server: Server, subject: Subject) -> None:
    """The endpoint serves the version that the loop runs."""
    answer = httpx.post(server.url, content=server.body, headers=server.headers, timeout=10, trust_env=False)
    answer.raise_for_status()
    assert answer.headers["Modelyard-Model-Version"] == subject.version


# -- measuring --------------------------------------------------------------------------------------------


def _measure(
    started: Mapping[str, Server], subject: Subject, connections: int, plan: Plan, scratch: Path
) -> list[Figure]:
    def under_load(server: Server) -> Contestant:
        def sample() -> Sample:
            result = load.fire(
                server.url,
                server.body,
                connections=connections,
                seconds=plan.seconds,
                scratch=scratch,
                headers=server.headers,
            )
            return {"rate": result.per_second, "p50": result.p50_ms, "p99": result.p99_ms}

        return sample

    contestants: dict[str, Contestant] = {name: under_load(server) for name, server in started.items()}
    bound: dict[str, Contestant] = {BOUND: lambda: {"p99": P99_MS}}
    samples = take_turns({**contestants, **_loops(subject, plan), **bound}, plan.rounds)
    where = f"{subject.name}, {connections} connections"
    is_promised = (subject.name, connections) == PROMISED_AT

    def rate(of: str, against: str) -> Figure:
        target = PROMISED.get(of) if is_promised and against == LOOP else None
        name = f"{where}: requests"
        return compare(
            samples, "rate", subject=of, against=against, name=name, unit="1/s", better="more", target=target
        )

    def latency(measure: str, of: str, against: str) -> Figure:
        target = 1.0 if is_promised and against == BOUND else None
        name = f"{where}: {measure}"
        return compare(
            samples, measure, subject=of, against=against, name=name, unit="ms", better="less", target=target
        )

    peers = [name for name in started if name not in (OURS, BINARY, TRIVIAL)]
    return [
        *(rate(OURS, other) for other in samples if other not in (OURS, BOUND)),
        *(rate(BINARY, other) for other in (LOOP, BARE)),
        rate(STARLETTE, LOOP),
        *(latency(measure, OURS, peer) for measure in ("p50", "p99") for peer in peers),
        *(latency("p99", of, BOUND) for of in (OURS, BINARY)),
    ]


def _measure_start(settings: Settings, server: Server, plan: Plan, scratch: Path) -> list[Figure]:
    """From nothing but the local cache to the first answer, against what was promised."""
    endpoint_start.await_local_state(settings, [PROMISED_AT[0]])
    home = endpoint_start.copy_home(settings, scratch)
    contestants: dict[str, Contestant] = {
        OURS: lambda: endpoint_start.start(home, server),
        BOUND: lambda: {"seconds": START_SECONDS, "mb": MEMORY_MB},
    }
    samples = take_turns(contestants, plan.rounds)
    named = {"seconds": "start to first answer", "mb": "memory (PSS) of router and a worker"}
    units = {"seconds": "s", "mb": "MB"}
    return [
        compare(
            samples, measure, subject=OURS, against=BOUND, name=name, unit=units[measure], better="less", target=1.0
        )
        for measure, name in named.items()
    ]


def _measure_way_back(settings: Settings, subject: Subject, server: Server, plan: Plan, scratch: Path) -> Findings:
    """A second version takes over; then the first one, still warm, is a canary that goes back, again and again."""
    session = plain.Session.open(settings)
    uri = plain.place_noise(session.catalog.store, width=len(subject.columns))
    plain.run(session, uri, [*COMMON, "preprocess.ranges={}", "train.seed=1", f"model_name={subject.name}"])
    return Findings(
        figures=way_back.run(settings, subject.name, server, 2 * plan.rounds, scratch), notes=[way_back.NOTE]
    )


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
            " transform, decodes the answer and names the version in it; the uvicorn apps, the loops and the other servers do not."
        ),
        "`mlflow models serve` answers from the registered version through our loader, transform and decoding included.",
        "p50 and p99 are a whole stretch's; the figure is the median of the rounds.",
    ]
