"""Every wait has a bound, and each bound its status. The app runs in this process, its workers and store are real."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import pytest

from modelyard.revisions import ServedVersion
from modelyard.serve.patience import Patience
from modelyard.settings import Settings
from modelyard.storage import Store
from tests.serve.inprocess import endpoint
from tests.serve.load import BODY
from tests.serve.packages import publish_version

INFER = "/v2/models/digits/infer"


@pytest.fixture(scope="module")
def version(store: Store) -> ServedVersion:
    return publish_version(store, "1")


async def test_overload_is_429_and_passes(settings: Settings, store: Store, version: ServedVersion, tmp_path: Path):
    """More than may wait is turned away at once with Retry-After; what was admitted is answered."""
    bounds = {"max_queued_requests": 3, "max_unanswered_batches": 1}
    async with endpoint(settings, store, version, tmp_path, **bounds) as inside:
        os.kill(inside.worker_pid, signal.SIGSTOP)
        first = asyncio.create_task(inside.client.post(INFER, json=BODY))
        await asyncio.sleep(0.05)
        others = [asyncio.create_task(inside.client.post(INFER, json=BODY)) for _ in range(8)]
        await asyncio.sleep(0.1)
        os.kill(inside.worker_pid, signal.SIGCONT)
        answers = await asyncio.gather(first, *others)
    codes = sorted(answer.status_code for answer in answers)
    assert codes == [200] * 4 + [429] * 5
    assert all(answer.headers["retry-after"] == "1" for answer in answers if answer.status_code == 429)


async def test_a_hung_worker_is_504_then_replaced(
    settings: Settings, store: Store, version: ServedVersion, tmp_path: Path
):
    """A request meets its own bound; the worker that hangs is killed, and its successor answers."""
    bounds = {"request_seconds": 0.3, "hang_seconds": 0.6, "respawn_seconds": (0.0, 0.0)}
    async with endpoint(settings, store, version, tmp_path, **bounds) as inside:
        os.kill(inside.worker_pid, signal.SIGSTOP)
        answer = await inside.client.post(INFER, json=BODY)
        assert answer.status_code == 504
        assert answer.headers["Modelyard-Model-Version"] == "1"
        async with asyncio.timeout(15):
            while (await inside.client.post(INFER, json=BODY)).status_code != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.05)


async def test_a_hang_costs_no_request(settings: Settings, store: Store, version: ServedVersion, tmp_path: Path):
    """A worker that owes an answer for far longer than usual is killed in time for its requests to be answered by another."""
    async with endpoint(settings, store, version, tmp_path, stall_seconds=0.3, respawn_seconds=(0.0, 0.0)) as inside:
        os.kill(inside.worker_pid, signal.SIGSTOP)
        answers = await asyncio.gather(*(inside.client.post(INFER, json=BODY) for _ in range(20)))
    assert {answer.status_code for answer in answers} == {200}


def test_patience_is_learned():
    """Before anything is known the longest bound holds; then twenty times what so many bytes take, between the two."""
    patience = Patience(3.0, 10.0)
    assert patience.allowed(1) == 10.0
    patience.learn(1_000, 0.1)
    assert [patience.allowed(size) for size in (1, 1_000, 2_500, 1_000_000)] == [3.0, 3.0, pytest.approx(5.0), 10.0]
    for _ in range(100):
        patience.learn(1_000, 0.001)
    assert patience.allowed(100_000) == 3.0
    assert Patience(3.0, 0.5).allowed(1) == 0.5


async def test_no_worker_is_503(settings: Settings, store: Store, version: ServedVersion, tmp_path: Path):
    """When the only worker does not come back within the bound, clients are told when to try again."""
    bounds = {"comeback_seconds": 0.2, "respawn_seconds": (30.0, 30.0)}
    async with endpoint(settings, store, version, tmp_path, **bounds) as inside:
        os.kill(inside.worker_pid, signal.SIGKILL)
        answer = await inside.client.post(INFER, json=BODY)
        ready = await inside.client.get("/readyz")
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert ready.status_code == 503
    assert "digits" in ready.json()["reason"]


async def test_a_body_that_does_not_come_is_408(
    settings: Settings, store: Store, version: ServedVersion, tmp_path: Path
):
    """A client that stops sending does not hold its request open."""

    async def never() -> AsyncGenerator[bytes]:
        yield b"{"
        await asyncio.sleep(5)

    async with endpoint(settings, store, version, tmp_path, body_seconds=0.1) as inside:
        assert (await inside.client.post(INFER, content=never())).status_code == 408


async def test_a_version_that_keeps_dying_loses_its_weight(settings: Settings, store: Store, tmp_path: Path):
    """After two deaths in a row the other version has all requests, status and metrics say so; then it comes back."""
    stable, canary = publish_version(store, "1", weight=50), publish_version(store, "2", weight=50)
    bounds = {"respawn_seconds": (0.0, 0.0), "max_deaths": 2, "steady_seconds": 2.0}
    async with endpoint(settings, store, stable, tmp_path, [canary], **bounds) as inside:

        async def look() -> dict[str, Any]:
            versions = (await inside.client.get("/admin/status")).json()["models"]["digits"]["versions"]
            return next(one for one in versions if one["version"] == "2")

        async def until(condition: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
            async with asyncio.timeout(30):
                while not condition(seen := await look()):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            return seen

        for _ in range(2):
            pid = (await until(lambda seen: seen["worker_pid"]))["worker_pid"]
            os.kill(pid, signal.SIGKILL)
            await until(lambda seen: seen["worker_pid"] not in (None, pid))  # noqa: B023
        dying = await look()
        assert (dying["keeps_dying"], dying["weight"], dying["share"]) == (True, 50.0, 0.0)
        answers = [await inside.client.post(INFER, json=BODY) for _ in range(30)]
        page = (await inside.client.get("/metrics")).text
        await until(lambda seen: not seen["keeps_dying"])
        trusted = await look()
    assert {answer.headers["modelyard-model-version"] for answer in answers} == {"1"}
    assert 'modelyard_version_share_percent{model="digits",version="1"} 100.0' in page
    assert 'modelyard_version_share_percent{model="digits",version="2"} 0.0' in page
    assert trusted["share"] == 50.0
