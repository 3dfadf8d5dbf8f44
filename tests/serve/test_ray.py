"""Workers on a Ray cluster: the same endpoint, with replicas and nodes killed for real."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from signal import SIGKILL
from typing import Any

import psutil
import pytest
from pydantic import ValidationError

from modelyard.errors import MissingExtra
from modelyard.gates import RolloutPolicy
from modelyard.serve.limits import Limits
from modelyard.serve.ray_workers import RayPool
from modelyard.settings import Settings
from modelyard.storage import Store
from tests.conftest import alive
from tests.rayclusters import ray_cluster
from tests.serve.canaries import ODD_ROW, OddModel, actions, begin, until_decided
from tests.serve.load import BODY, under_load
from tests.serve.packages import publish_version, roll_out
from tests.serve.processes import Endpoint, free_port, until

REPLICA_BOUND_SECONDS = 10
QUICK = RolloutPolicy.model_validate(
    {"steps": (50, 100), "min_requests": 20, "min_seconds": 0, "replay": {"enabled": False}}
)


def test_what_is_no_address_of_a_cluster_is_refused():
    """The sentence says what to write instead."""
    with pytest.raises(ValidationError, match=r"ray://head:10001 is that of Ray's client server(.|\n)*ray start"):
        Settings(endpoint_ray="ray://head:10001")


def test_without_ray_the_endpoint_does_not_start(monkeypatch: pytest.MonkeyPatch):
    """It says what to install."""
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"MODELYARD_ENDPOINT_RAY needs .*modelyard\[ray\]"):
        RayPool("auto", Limits())


def test_no_cluster_at_the_address_is_said_by_the_status(store: Store, new_endpoint: Callable[..., Endpoint]):
    """The endpoint stands, without a model, and says why it is not ready; it tries again by itself."""
    endpoint = new_endpoint(MODELYARD_ENDPOINT_RAY=f"127.0.0.1:{free_port()}")
    roll_out(store, endpoint.name, publish_version(store, "1"))
    assert "no Ray cluster answers at 127.0.0.1" in endpoint.start().reach(1)["error"]
    assert endpoint.client.get("/readyz").status_code == 503


@pytest.fixture
def cluster(store: Store) -> Iterator[Any]:
    """Three nodes with two CPUs each, and a head."""
    with ray_cluster(2, 2, 2) as made:
        yield made


def replicas(cluster: Any) -> list[psutil.Process]:
    """The loaded and loading workers in a cluster."""
    found = []
    for node in cluster.list_all_nodes():
        with suppress(psutil.Error):
            raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
            found += [child for child in raylet.children() if is_replica(child)]
    return found


def is_replica(process: psutil.Process) -> bool:
    try:
        return "".join(process.cmdline()).startswith("ray::Replica")
    except psutil.Error:
        return False


@pytest.mark.soak
@pytest.mark.timeout(600)
async def test_an_endpoint_over_a_cluster_rolls_out_and_survives(
    store: Store, new_endpoint: Callable[..., Endpoint], cluster: Any
):
    """Under load, without a failed request: a canary is taken in, judged and promoted; a replica is killed; a node is
    killed with all that is on it."""
    endpoint = new_endpoint(MODELYARD_ENDPOINT_RAY=cluster.address, MODELYARD_ENDPOINT_WORKERS="2")
    roll_out(store, endpoint.name, publish_version(store, "1"))
    endpoint.start()
    status = await asyncio.to_thread(until, lambda: (now := endpoint.status())["attempted"] and now, "revision 1", 60)
    assert status["error"] is None
    first = replicas(cluster)
    assert len({process.ppid() for process in first}) == 2, "two replicas, on two nodes"

    number = 0

    async def roll_out_2() -> None:
        nonlocal number
        number = begin(store, endpoint.name, publish_version(store, "2"), QUICK).number
        endpoint.notify()
        await asyncio.to_thread(until_decided, store, endpoint.name, number, 90)

    tally = await under_load(endpoint.url, roll_out_2)
    assert tally.is_clean, tally.failures
    assert actions(store, endpoint.name, number)[-1] == "promote"
    assert set(tally.by_version) == {"1", "2"}

    async def lose(processes: list[psutil.Process]) -> None:
        before = endpoint.status()["models"]["digits"]["versions"][0]["restarts"]
        for process in processes:
            process.kill()
        await asyncio.to_thread(
            until, lambda: endpoint.status()["models"]["digits"]["versions"][0]["restarts"] > before, "a successor", 60
        )

    await asyncio.to_thread(until, lambda: {"2"} == answering(endpoint, 10), "version 2 alone", 60)
    serving = [process for process in replicas(cluster) if process not in first]
    assert len(serving) == 2
    tally = await under_load(endpoint.url, lambda: lose(serving[:1]))
    assert tally.is_clean, tally.failures

    await asyncio.to_thread(until, lambda: len(replicas(cluster)) == 4, "all replicas", 60)
    busiest = max(cluster.worker_nodes, key=lambda node: len([one for one in replicas(cluster) if on(node, one)]))
    lost = [psutil.Process(busiest.all_processes["raylet"][0].process.pid)]
    lost += lost[0].children(recursive=True)
    assert any(map(is_replica, lost))
    tally = await under_load(endpoint.url, lambda: lose(lost))
    assert tally.is_clean, tally.failures


@pytest.mark.soak
@pytest.mark.timeout(300)
async def test_a_bad_canary_in_a_cluster_goes_back_and_nothing_outlives_the_endpoint(
    store: Store, new_endpoint: Callable[..., Endpoint], cluster: Any
):
    """A canary whose answers are no numbers is sent back by the endpoint itself. `kill -9` of the endpoint leaves no replica,
    and the next one serves again."""
    endpoint = new_endpoint(MODELYARD_ENDPOINT_RAY="auto")
    roll_out(store, endpoint.name, publish_version(store, "2"))
    endpoint.start()
    await asyncio.to_thread(until, lambda: endpoint.client.get("/readyz").status_code == 200, "ready", 60)
    odd = begin(store, endpoint.name, publish_version(store, "3", kind=OddModel), QUICK).number
    endpoint.notify()
    await asyncio.to_thread(until, lambda: "3" in answering(endpoint, 4), "the canary", 90)
    body = {"inputs": [BODY["inputs"][0] | {"data": ODD_ROW}]}

    def ask_until_decided() -> bool:
        endpoint.client.post("/v2/models/digits/infer", json=body)
        return bool({"roll_back", "give_up"} & set(actions(store, endpoint.name, odd)))

    await asyncio.to_thread(until, ask_until_decided, "a decision", 60)
    assert actions(store, endpoint.name, odd)[-1] == "roll_back"
    assert answering(endpoint, 10) == {"2"}

    left = replicas(cluster)
    assert left
    endpoint.end(SIGKILL)
    _, still = await asyncio.to_thread(psutil.wait_procs, left, REPLICA_BOUND_SECONDS)
    assert not alive(still)
    endpoint.start()
    await asyncio.to_thread(until, lambda: endpoint.client.get("/readyz").status_code == 200, "ready", 60)
    assert answering(endpoint, 1) == {"2"}


def answering(endpoint: Endpoint, count: int) -> set[str]:
    """The versions that answer so many requests."""
    answers = [endpoint.client.post("/v2/models/digits/infer", json=BODY) for _ in range(count)]
    return {answer.raise_for_status().headers["Modelyard-Model-Version"] for answer in answers}


def on(node: Any, process: psutil.Process) -> bool:
    return node.all_processes["raylet"][0].process.pid == process.ppid()
