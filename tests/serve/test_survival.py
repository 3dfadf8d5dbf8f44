"""What kills an endpoint's processes, and what does not cost a request."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from modelyard.revisions import ServedVersion
from modelyard.storage import Store
from tests.serve.load import BODY, under_load
from tests.serve.packages import publish_version, roll_out
from tests.serve.processes import PROJECT, Endpoint, free_port, lives, until

INFER = "/v2/models/digits/infer"


@pytest.fixture(scope="module")
def version(store: Store) -> ServedVersion:
    return publish_version(store, "1")


@pytest.fixture(scope="module")
def survivor(new_endpoint: Callable[[], Endpoint]) -> Endpoint:
    """The one endpoint that the tests of this module kill."""
    return new_endpoint()


@pytest.fixture
def serving(store: Store, survivor: Endpoint, version: ServedVersion) -> Endpoint:
    """It serves version 1, alone, whatever the test before did to it."""
    number = roll_out(store, survivor.name, version).number
    if not survivor.runs:
        survivor.start()
    assert survivor.reach(number)["error"] is None
    state = survivor.log.parent / "endpoint" / "state.json"
    until(
        lambda: state.exists() and json.loads(state.read_text())["number"] == number, "the local state"
    )  # written after the switch
    return survivor


async def test_killed_workers_cost_no_request(serving: Endpoint):
    """kill -9 of the only worker, twice under load: requests wait for its successor, and all are answered."""

    async def kill() -> None:
        for _ in range(2):
            [pid] = await asyncio.to_thread(until, serving.worker_pids, "a worker")
            os.kill(pid, signal.SIGKILL)
            await asyncio.to_thread(until, lambda: serving.worker_pids() not in ([], [pid]), "its successor")  # noqa: B023

    tally = await under_load(serving.url, kill)
    assert tally.is_clean, tally.failures
    assert tally.total >= 30
    assert serving.status()["models"]["digits"]["versions"][0]["restarts"] == 2
    assert 'worker_restarts_total{model="digits",version="1"} 2.0' in serving.client.get("/metrics").text


async def test_the_previous_version_answers_for_a_dead_one(store: Store, serving: Endpoint, version: ServedVersion):
    """While a worker is away, the version kept warm answers, and the header says so."""
    number = roll_out(store, serving.name, publish_version(store, "5"), previous=version).number
    serving.reach(number)
    until(lambda: serving.status()["models"]["digits"]["previous"], "the previous version")
    [pid] = serving.worker_pids()

    async def kill() -> None:
        os.kill(pid, signal.SIGKILL)
        await asyncio.to_thread(until, lambda: serving.worker_pids() not in ([], [pid]), "its successor")

    tally = await under_load(serving.url, kill)
    assert tally.is_clean, tally.failures
    assert tally.by_version["1"] > 0
    assert tally.by_version["5"] > 0


@pytest.mark.soak
async def test_workers_that_end_in_every_way_cost_no_request(store: Store, serving: Endpoint, version: ServedVersion):
    """20,000 requests and more while the worker is killed, runs into a segmentation fault, or hangs, every 2,000: each is answered, by
    the version itself or the one before it, and rightly."""

    async def end(pid: int, way: signal.Signals) -> None:
        os.kill(pid, way)
        await asyncio.to_thread(until, lambda: serving.worker_pids() not in ([], [pid]), "its successor", 40)

    ways, total, turn = [signal.SIGKILL, signal.SIGSEGV, signal.SIGSTOP], 0, 0
    while total < 20_000 or turn < 6:
        way = ways[turn % 3]
        newest = publish_version(store, str(10 + turn))  # another each time: one that keeps dying would lose its weight
        serving.reach(roll_out(store, serving.name, newest, previous=version).number)
        [pid] = await asyncio.to_thread(until, serving.worker_pids, "a worker")
        event = end(pid, way)
        tally = await under_load(serving.url, lambda: event, num_clients=8, after=2_000)  # noqa: B023
        assert tally.is_clean, (way, tally.failures[:5])
        assert set(tally.by_version) <= {newest.version, version.version}
        assert serving.status()["models"]["digits"]["versions"][0]["restarts"] == 1
        total, turn = total + tally.total, turn + 1


def test_a_killed_endpoint_serves_again_without_the_store(serving: Endpoint):
    """kill -9 of the parent ends all below it; restarted with the store away, it serves the same from its cache."""
    before = serving.client.post(INFER, json=BODY)
    pids = serving.worker_pids()
    serving.end(signal.SIGKILL)
    until(lambda: not any(map(lives, pids)), "the end of the workers", seconds=5)
    serving.start(store_url=f"http://127.0.0.1:{free_port()}")
    until(lambda: serving.client.get("/readyz").status_code == 200, "readiness")
    after = serving.client.post(INFER, json=BODY)
    assert after.json()["outputs"] == before.json()["outputs"]
    for header in ("Modelyard-Model-Version", "Modelyard-Artifact-Digest", "Modelyard-Endpoint-Revision"):
        assert after.headers[header] == before.headers[header]
    assert serving.end(signal.SIGTERM) == 0


def test_a_damaged_cache_is_never_served(serving: Endpoint):
    """A flipped byte on the local disk: without the store nothing is served; with it the file is fetched anew, also when a
    worker dies long after the start, and when the whole folder is gone."""
    serving.end(signal.SIGTERM)
    [model] = serving.log.parent.glob("endpoint/cache/*/model.onnx")
    whole = model.read_bytes()
    damaged = whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:]
    model.write_bytes(damaged)
    serving.start(store_url=f"http://127.0.0.1:{free_port()}")
    until(lambda: serving.status()["error"], "an error")
    assert serving.client.get("/readyz").status_code == 503
    assert serving.client.post(INFER, json=BODY).status_code == 404
    serving.end(signal.SIGTERM)
    serving.start()
    until(lambda: serving.client.get("/readyz").status_code == 200, "readiness")
    assert serving.client.post(INFER, json=BODY).status_code == 200
    assert model.read_bytes() == whole
    for damage in (lambda: model.write_bytes(damaged), lambda: shutil.rmtree(model.parent)):
        damage()
        [pid] = until(serving.worker_pids, "a worker")
        os.kill(pid, signal.SIGKILL)
        assert serving.client.post(INFER, json=BODY, timeout=15).status_code == 200
        assert model.read_bytes() == whole


async def test_sigterm_answers_what_it_accepted(serving: Endpoint):
    """A stopping endpoint finishes requests in flight, closes connections politely, ends its workers, exits with 0."""
    pids = serving.worker_pids()
    answered, refused = [], []

    async def ask(client: httpx.AsyncClient) -> None:
        while not refused:
            try:
                answered.append(await client.post(INFER, json=BODY))
            except httpx.ConnectError:  # a request cut off on an accepted connection would be another error
                refused.append(1)

    async with httpx.AsyncClient(base_url=serving.url, timeout=15) as client, asyncio.TaskGroup() as clients:
        for _ in range(6):
            clients.create_task(ask(client))
        await asyncio.to_thread(until, lambda: len(answered) > 50, "some answers")
        code = await asyncio.to_thread(serving.end, signal.SIGTERM)
    assert code == 0
    assert {response.status_code for response in answered} == {200}
    assert any(response.headers.get("connection") == "close" for response in answered)
    assert not any(map(lives, pids))


def test_a_taken_port_is_named(serving: Endpoint, tmp_path: Path):
    """A second endpoint on the same port says which port, and which setting changes it."""
    environment = os.environ | {
        "PYTHONPATH": str(PROJECT),
        "MODELYARD_HOME": str(tmp_path),
        "MODELYARD_ENDPOINT_PORT": str(serving.port),
    }
    second = subprocess.run(
        [sys.executable, "-m", "modelyard.serve"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert second.returncode == 1
    assert f"port {serving.port} is held" in second.stderr
    assert "MODELYARD_ENDPOINT_PORT" in second.stderr


@pytest.mark.parametrize("module", ["modelyard.serve.program", "modelyard.serve.worker"])
def test_endpoint_processes_import_nothing_heavy(module: str):
    """Neither process loads torch, Prefect or MLflow, not even through another module."""
    program = f"import {module}, sys; print({{'torch', 'prefect', 'mlflow'}} & set(sys.modules))"
    said = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert said.stdout.strip() == "set()"
