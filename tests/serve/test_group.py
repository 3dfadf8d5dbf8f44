"""Several workers of one version."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

import psutil

from modelyard.serve.worker import NAME
from modelyard.storage import Store
from tests.serve.load import under_load
from tests.serve.packages import publish_version, roll_out
from tests.serve.processes import Endpoint, lives, until


def workers(endpoint: Endpoint) -> set[int]:
    """The loaded workers of the router that accepts now."""
    router = psutil.Process(endpoint.status()["router_pid"])
    living = [child for child in router.children() if lives(child.pid)]
    return {child.pid for child in living if Path(f"/proc/{child.pid}/comm").read_bytes().strip() == NAME}


async def test_one_of_two_workers_may_die(store: Store, new_endpoint: Callable[..., Endpoint]):
    """kill -9 of one under load costs no request: the other answers, a successor is started beside it, and that is
    counted. kill -9 of both costs none either."""
    endpoint = new_endpoint(MODELYARD_ENDPOINT_WORKERS="2")
    roll_out(store, endpoint.name, publish_version(store, "1"))
    assert endpoint.start().reach(1)["error"] is None
    before = workers(endpoint)
    assert len(before) == 2

    # What a successor loads is looked at first, and fetched anew.
    [model] = endpoint.log.parent.glob("endpoint/cache/*/model.onnx")
    whole = model.read_bytes()
    model.write_bytes(b"no model")

    async def kill(victims: set[int]) -> None:
        known = await asyncio.to_thread(workers, endpoint)
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        left = known - victims
        await asyncio.to_thread(
            until, lambda: len(now := workers(endpoint)) == 2 and now - known and left <= now, "two"
        )

    tally = await under_load(endpoint.url, lambda: kill({min(before)}))
    assert tally.is_clean, tally.failures
    [version] = endpoint.status()["models"]["digits"]["versions"]
    assert (version["restarts"], version["keeps_dying"]) == (1, False)
    assert model.read_bytes() == whole
    tally = await under_load(endpoint.url, lambda: kill(workers(endpoint)))
    assert tally.is_clean, tally.failures
