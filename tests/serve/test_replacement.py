"""The socket outlives the routers that accept from it: they are replaced, and killed, under load."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable

import pytest

from modelyard.storage import Store
from tests.serve.load import under_load
from tests.serve.packages import publish_version, roll_out
from tests.serve.processes import Endpoint, lives, until


@pytest.fixture(scope="module")
def endpoint(store: Store, new_endpoint: Callable[[], Endpoint]) -> Endpoint:
    made = new_endpoint()
    roll_out(store, made.name, publish_version(store, "1"))
    made.start().reach(1)
    return made


async def replace(endpoint: Endpoint) -> None:
    """As `kill -HUP` does, and wait until another router answers."""
    before = await asyncio.to_thread(endpoint.router_pid)
    endpoint.process.send_signal(signal.SIGHUP)
    await asyncio.to_thread(until, lambda: endpoint.router_pid() not in (None, before), "the next router", 60)


async def kill(endpoint: Endpoint, times: list[float]) -> None:
    """kill -9 of the router; notes when it is dead, and waits until another one answers."""
    before = await asyncio.to_thread(until, endpoint.router_pid, "a router")
    os.kill(before, signal.SIGKILL)
    while lives(before):  # for a moment more it may accept
        pass
    times.append(time.monotonic())
    await asyncio.to_thread(until, lambda: endpoint.router_pid() not in (None, before), "the next router", 60)


async def test_a_router_is_replaced_under_load(endpoint: Endpoint):
    """Not one request fails, on kept or on new connections; the old router goes as soon as its last client did."""
    before = endpoint.router_pid()
    tally = await under_load(endpoint.url, lambda: replace(endpoint), num_fresh=3)
    assert tally.is_clean, tally.failures
    endpoint.client.close()
    until(lambda: not lives(before), "the end of the old router")
    endpoint.client = type(endpoint.client)(base_url=endpoint.url, headers=endpoint.client.headers)


async def test_a_killed_router_costs_no_new_connection(endpoint: Endpoint):
    """kill -9: whoever connects from then on waits and is answered. Connections that were open break, each once; no
    answer is wrong."""
    times: list[float] = []
    tally = await under_load(endpoint.url, lambda: kill(endpoint, times), num_fresh=3)
    assert not tally.failures
    assert tally.num_closed <= 3
    assert all(began < times[0] for began in tally.broken_at)


async def test_a_router_that_cannot_start_replaces_nothing(endpoint: Endpoint):
    """With settings that do not fit, the next router says so and ends; the one before goes on."""
    before = endpoint.router_pid()
    broken = endpoint.log.parent / ".env"
    broken.write_text("MODELYARD_LOG_LEVEL=loud")
    endpoint.process.send_signal(signal.SIGHUP)
    until(lambda: "ended with 1 before it could answer" in endpoint.log.read_text(), "the word of the parent")
    broken.unlink()
    assert "MODELYARD_LOG_LEVEL" in endpoint.log.read_text()
    assert endpoint.router_pid() == before
    tally = await under_load(endpoint.url, lambda: asyncio.sleep(0))
    assert tally.is_clean, tally.failures


def test_a_killed_parent_makes_room(endpoint: Endpoint):
    """kill -9 of the parent alone: the router leaves by itself, and the next parent gets the port."""
    before = endpoint.router_pid()
    endpoint.process.kill()
    endpoint.process.wait()
    endpoint.start()
    until(lambda: not lives(before), "the end of the orphaned router")
    assert endpoint.router_pid() not in (None, before)


def test_all_of_them_end_with_their_parent(endpoint: Endpoint):
    """SIGTERM to the parent ends routers and workers, and it exits with 0."""
    pids = [endpoint.router_pid(), *endpoint.worker_pids()]
    assert endpoint.end(signal.SIGTERM) == 0
    assert not any(map(lives, pids))


@pytest.mark.soak
async def test_at_length(store: Store, new_endpoint: Callable[[], Endpoint]):
    """20,000 requests and more while the router is replaced or killed every 2,000: a replacement breaks nothing, a kill
    only connections that were open."""
    endpoint = new_endpoint()
    roll_out(store, endpoint.name, publish_version(store, "1"))
    endpoint.start().reach(1)
    total, turn, times = 0, 0, list[float]()
    while total < 20_000:
        event = replace(endpoint) if turn % 2 else kill(endpoint, times)
        tally = await under_load(endpoint.url, lambda: event, num_clients=8, num_fresh=4, after=2_000)  # noqa: B023
        assert tally.is_clean if turn % 2 else not tally.failures, (turn, tally.failures)
        assert tally.num_closed <= 4
        late = [round(began - times[-1], 3) for began in tally.broken_at if began >= times[-1]]
        assert not late, f"turn {turn}: asked for so many seconds after the kill, and broken: {late}"
        total, turn = total + tally.total, turn + 1
    assert turn > 4
