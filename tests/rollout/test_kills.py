"""Processes killed at random points of a rollout: each time there is one state afterwards, and the ledger tells how."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from modelyard.errors import RolledBack
from modelyard.revisions import ServedVersion
from tests.conftest import Installation
from tests.rollout.yard import Yard
from tests.serve.processes import until

# Nobody asks, so held-out rows are replayed; decided after two to three seconds, wherever the kill falls.
POLICY = {
    "steps": [10, 50, 100],
    "min_requests": 30,
    "min_seconds": 0.3,
    "gates": {"max_error_rate": 0.05, "latency": False},
}
VICTIMS: dict[str, Callable[[Yard], None]] = {
    "the canary's worker": lambda yard: yard.kill_worker(-1),
    "the stable version's worker": lambda yard: yard.kill_worker(0),
    "the endpoint": Yard.kill_endpoint,
    "the store": Yard.kill_store,
}
FLOW = "the flow"
WHOLE = ["start", "advance", "promote"]


@pytest.fixture
def yard(stack: Installation, tmp_path: Path) -> Iterator[Yard]:
    made = Yard(stack, "killed", POLICY, tmp_path / "flows.log")
    if made.state() is None:
        made.roll_out(made.publish(1))
    yield made
    made.close()


def survive(yard: Yard, victim: str, chance: random.Random) -> str:
    """One rollout with one kill; how it ended."""
    candidate, before = yard.publish(1 + yard.num_registered()), yard.newest().number
    if victim == FLOW:
        kill_a_flow(yard, candidate, before, chance)
    else:
        carried = threading.Thread(target=carry_out, args=[yard, candidate])
        carried.start()
        time.sleep(chance.uniform(0, 3.5))
        VICTIMS[victim](yard)
        carried.join()
    carry_out(yard, candidate)  # the next try, of whoever died: it finds the rollout under way, decided, or not begun
    yard.assert_one_truth()
    story = [decision.action for decision in yard.decisions(before)]
    assert story == WHOLE, (victim, story)
    assert yard.state().stable.artifact == candidate.artifact
    return story[-1]


def carry_out(yard: Yard, candidate: ServedVersion) -> None:
    with suppress(RolledBack):
        yard.roll_out(candidate)


def kill_a_flow(yard: Yard, candidate: ServedVersion, before: int, chance: random.Random) -> None:
    """While its rollout goes on; one of four before it has begun, most likely."""
    flow = yard.start_flow(candidate)
    try:
        if chance.random() < 0.75:
            until(lambda: yard.begun(candidate, before), "the rollout's beginning", 60)
            time.sleep(chance.uniform(0, 2))
        else:
            time.sleep(chance.uniform(0, 5))
    finally:
        flow.kill()
        flow.wait()


@pytest.mark.parametrize("victim", [*VICTIMS, FLOW])
def test_whoever_is_killed_the_rollout_ends_in_one_state(yard: Yard, victim: str):
    """kill -9 of a worker, the endpoint, the store or the flow: the canary is promoted all the same, once, step by step;
    aliases, ledger, endpoint and manifests agree."""
    survive(yard, victim, random.Random(4))


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_a_hundred_kills_at_random_points(yard: Yard):
    """The same, a hundred times."""
    chance, done = random.Random(7), Counter[str]()
    for _ in range(100):
        victim = chance.choice([*VICTIMS, FLOW])
        survive(yard, victim, chance)
        done[victim] += 1
    print(dict(done))
