"""Rollouts and rollbacks of the whole stack under load that does not wait, while its processes die or are replaced."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from modelyard.errors import RolledBack
from tests.conftest import Installation
from tests.rollout.yard import Yard
from tests.serve.openloop import OpenLoop
from tests.serve.processes import until

REQUESTS, ROLLOUTS, PER_SECOND = 100_000, 24, 250
# Decided after some 250 requests of the canary, about five seconds of this load. What a killed worker does to latency
# is not the matter here.
POLICY = {
    "steps": [10, 50, 100],
    "min_requests": 50,
    "min_seconds": 0.5,
    "replay": {"enabled": False},
    "gates": {"max_error_rate": 0.05, "latency": False},
}
EVENTS: dict[str, Callable[[Yard], None]] = {
    "nothing": lambda _yard: None,
    "kill -9 of the stable version's worker": lambda yard: yard.kill_worker(0),
    "kill -9 of the canary's worker": lambda yard: yard.kill_worker(-1),
    "another router": Yard.replace_router,
    "restart of the store": Yard.restart_store,
}
KILLED_FLOW = "kill -9 of the flow"


@pytest.fixture
def yard(stack: Installation, tmp_path: Path) -> Iterator[Yard]:
    made = Yard(stack, "under-load", POLICY, tmp_path / "flows.log")
    yield made
    made.close()


def one_round(yard: Yard, number: int, event: str, chance: random.Random) -> str:
    """A rollout to its end with one event in between, by flows that may die; how it ended."""
    candidate, before = yard.publish(number), yard.newest().number
    flow = yard.start_flow(candidate)
    try:
        if event == KILLED_FLOW:
            time.sleep(chance.uniform(2, 9))  # it has begun after four to five
        else:
            until(lambda: yard.begun(candidate, before), "the rollout's beginning", 60)
            time.sleep(chance.uniform(0, 3))
            EVENTS[event](yard)
            flow.wait(120)
    finally:
        flow.kill()
        flow.wait()
    # Whatever became of it, the next flow finds the rollout under way, decided, or not begun.
    with suppress(RolledBack):
        yard.roll_out(candidate, seconds=120)
    until(yard.is_decided, "the decision", 60)
    return yard.decisions(before)[-1].action


@pytest.mark.soak
@pytest.mark.timeout(3600)
async def test_a_hundred_thousand_requests_over_twenty_rollouts(yard: Yard):
    """None of 100,000 requests, on kept and on new connections, fails while versions come and go and workers, flows,
    routers and the store end in between; at the end all who speak of what is served agree."""
    chance, ends, num_back = random.Random(0), Counter[str](), 0
    events = [*EVENTS, KILLED_FLOW]
    await asyncio.to_thread(yard.roll_out, yard.publish(1))
    async with OpenLoop(yard.settings.endpoint_port, PER_SECOND, model=yard.model) as load:
        number = 2
        while load.record.total < REQUESTS or number < ROLLOUTS + 2:
            event = events[number % len(events)]
            end = await asyncio.to_thread(one_round, yard, number, event, chance)
            ends[end] += 1
            if end == "promote" and chance.random() < 0.5:
                await asyncio.to_thread(yard.go_back)
                num_back += 1
            print(f"{number}: {event}: {end}; {load.record.total} requests, {len(load.record.failures)} failed")
            number += 1
    print(f"{load.record.total} requests, {dict(ends)}, {num_back} rollbacks, {len(load.record.by_version())} versions")
    assert not load.record.failures, load.record.failures[:20]
    assert ends["promote"] >= ROLLOUTS / 2
    assert num_back > 0
    await asyncio.to_thread(yard.assert_one_truth)
