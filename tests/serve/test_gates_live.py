"""What `tests/gates/test_trial.py` simulates, on a real endpoint with real requests: how soon a worse canary goes back."""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from statistics import median
from typing import Any

import httpx
import pytest

from modelyard.gates import RolloutPolicy
from modelyard.revisions import Decision
from modelyard.storage import Store
from tests.serve.canaries import OddModel, SeldomOddModel, begin, until_decided
from tests.serve.load import BODY
from tests.serve.packages import ROWS, LinearModel, publish_version, roll_out
from tests.serve.processes import Endpoint

ROUNDS = 9
CLIENTS = 8
# Bad for both versions, bad for the canary alone; and how many requests are the one and the other.
BAD_FOR_BOTH, BAD_FOR_CANARY = [-40.0, 0.0, 0.0, 0.0], [-10.0, 0.0, 0.0, 0.0]
USUAL = 0.002


@contextmanager
def asking(endpoint: Endpoint, per_second: float, bad_for_canary: float = 0.0) -> Generator[None]:
    """Requests by the clock, of which `USUAL` are bad for every version, and so many more for the canary alone."""
    is_over = threading.Event()

    def row(chance: random.Random) -> list[float]:
        at = chance.random()
        good: list[float] = ROWS[0].tolist()
        return BAD_FOR_BOTH if at < USUAL else BAD_FOR_CANARY if at < USUAL + bad_for_canary else good

    def ask(number: int) -> None:
        chance, due = random.Random(), time.monotonic() + number / per_second
        with httpx.Client(base_url=endpoint.url, timeout=15, trust_env=False) as client:
            while not is_over.wait(max(0.0, due - time.monotonic())):
                due = max(due + CLIENTS / per_second, time.monotonic() - 1)
                body = {"inputs": [BODY["inputs"][0] | {"data": row(chance)}]}
                assert client.post("/v2/models/digits/infer", json=body).status_code == 200

    threads = [threading.Thread(target=ask, args=[number]) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


@pytest.fixture
def ends(store: Store, new_endpoint: Callable[[], Endpoint]) -> Callable[..., list[Decision]]:
    """Has canaries of one kind rolled out beside a stable version of another, again and again; how each ended."""
    endpoint = new_endpoint().start()

    def decide(
        stable: type[LinearModel], canary: type[LinearModel], rounds: int, load: dict[str, float], **policy: Any
    ) -> list[Decision]:
        rules = RolloutPolicy.model_validate({"min_seconds": 0, "replay": {"enabled": False}} | policy)
        served, newcomer = publish_version(store, "1", kind=stable), publish_version(store, "2", kind=canary)
        found: list[Decision] = []
        for _ in range(rounds):
            number = roll_out(store, endpoint.name, served).number
            assert endpoint.reach(number)["error"] is None
            number = begin(store, endpoint.name, newcomer, rules).number
            assert endpoint.reach(number)["error"] is None
            with asking(endpoint, **load):
                found.append(until_decided(store, endpoint.name, number, seconds=240))
            print(found[-1].action, requests(found[-1]), [one.name for one in found[-1].checks if not one.passed])
        return found

    return decide


def requests(end: Decision) -> int:
    """Of the canary."""
    return sum(one.canary.requests for one in end.counts)


def refused_by(gate: str, found: list[Decision]) -> float:
    """Median of the canary's requests until one gate sent it back; infinite where none did."""
    for end in found:
        assert end.action == "promote" or [check.name for check in end.checks if not check.passed] == [gate], (
            end.reasons
        )
    return median(requests(end) if end.action == "roll_back" else math.inf for end in found)


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_an_outage_is_seen_at_once(ends: Callable[..., list[Decision]]):
    """Every answer of the canary to a live request is no number, though its golden rows were right: by the default policy half
    of the rollouts go back within five requests of the canary."""
    load = {"per_second": 200.0, "bad_for_canary": 1 - USUAL}
    assert refused_by("quality", ends(SeldomOddModel, OddModel, ROUNDS, load)) <= 5
