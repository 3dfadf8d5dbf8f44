"""A rollout and a rollback under load that does not wait; `tests/rollout/test_load.py` has many, on the whole stack."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable

import pytest

from modelyard import transitions
from modelyard.gates import Replay, RolloutPolicy
from modelyard.revisions import Decision, ServedVersion, latest_revision, propose_revision
from modelyard.storage import Store
from tests.serve.canaries import begin, until_decided
from tests.serve.openloop import OpenLoop
from tests.serve.packages import publish_version, roll_out
from tests.serve.processes import Endpoint, until

# Decided after about 250 requests of the canary. What a killed worker does to latency is not the matter here.
POLICY = RolloutPolicy.model_validate(
    {
        "steps": (10, 50, 100),
        "min_requests": 40,
        "min_seconds": 0.1,
        "gates": {"max_error_rate": 0.05, "latency": False},
    }
)
UNDER_LOAD = POLICY.model_copy(update={"replay": Replay(enabled=False)})


@pytest.fixture
def serving(store: Store, new_endpoint: Callable[[], Endpoint]) -> Endpoint:
    endpoint = new_endpoint()
    roll_out(store, endpoint.name, publish_version(store, "1"))
    endpoint.start().reach(1)
    return endpoint


def go_back(store: Store, endpoint: Endpoint) -> tuple[float, str, str]:
    """A person goes back; when the endpoint was told, the version that should go and the one that should answer."""
    before = latest_revision(store, endpoint.name)
    assert before
    revision = propose_revision(
        store,
        endpoint.name,
        lambda current: transitions.go_back(current, "digits", None),
        reason="go back",
        author="pytest",
        decision=Decision(model="digits", action="return", version="the one before"),
    )
    told = time.monotonic()
    endpoint.notify()
    endpoint.reach(revision.number)
    return told, before.models["digits"].versions[-1].version, revision.models["digits"].stable.version


def kill(endpoint: Endpoint, place: int) -> None:
    """kill -9 of the worker of the stable version (0) or of the canary (1), where there is one."""
    versions = endpoint.status()["models"]["digits"]["versions"]
    pid = versions[min(place, len(versions) - 1)]["worker_pid"]
    if pid:
        os.kill(pid, signal.SIGKILL)


async def one_round(store: Store, endpoint: Endpoint, canary: ServedVersion, kills: list[int]) -> str:
    """A rollout to its end, with workers killed on the way; how it ended."""

    def carry_out() -> str:
        number = begin(store, endpoint.name, canary, UNDER_LOAD).number
        endpoint.reach(number)
        for place in kills:
            kill(endpoint, place)
            time.sleep(0.3)
        end = until_decided(store, endpoint.name, number, seconds=120)
        until(lambda: endpoint.status()["revision"] > number, "the revision that ended it")
        print(end.action, end.reasons)
        return end.action

    return await asyncio.to_thread(carry_out)


async def test_no_request_is_lost_over_rollouts_and_rollbacks(store: Store, serving: Endpoint):
    """Promotion with both workers killed on the way, and a hand that goes back: every answer comes, and is right."""
    async with OpenLoop(serving.port, per_second=150) as load:
        assert await one_round(store, serving, publish_version(store, "2"), kills=[1, 0]) == "promote"
        told, gone, _ = await asyncio.to_thread(go_back, store, serving)
        await asyncio.sleep(0.3)
    assert not load.record.failures
    assert set(load.record.by_version()) == {"1", "2"}
    # `python -m benchmarks endpoint` holds it against 20 ms; here it must be soon.
    assert load.record.last_sent_to(gone, told) < 1
