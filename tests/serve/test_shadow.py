"""A canary in the shadow is asked copies of live requests, and answers nobody."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from modelyard.gates import RolloutPolicy, Shadow
from modelyard.revisions import ServedVersion
from modelyard.serve.shadow import BUSY_REQUESTS, MAX_COPIES, MAX_ROWS, Copier, agree
from modelyard.serve.trial import Trial
from modelyard.settings import Settings
from modelyard.storage import Store
from tests.serve.canaries import actions, begin, decisions, until_decided
from tests.serve.inprocess import Inside, endpoint
from tests.serve.load import BODY
from tests.serve.packages import MIXED, MIXED_ROWS, TURNED, LinearModel, publish_version
from tests.serve.processes import Endpoint, until

INFER = "/v2/models/digits/infer"


def policy(**changes: Any) -> RolloutPolicy:
    """Every request is copied; then half of them are the canary's."""
    given = {
        "steps": (50, 100),
        "min_requests": 10,
        "min_seconds": 0,
        "replay": {"enabled": False},
        "shadow": {"share": 1, "min_requests": 30},
        "gates": {"max_error_rate": 0.2, "max_disagreement": 0.2},
    }
    return RolloutPolicy.model_validate(given | changes)


def ask(endpoint: Endpoint, count: int) -> set[str]:
    """One request after the other; the versions that answered."""
    answers = [endpoint.client.post(INFER, json=BODY).raise_for_status() for _ in range(count)]
    return {answer.headers["Modelyard-Model-Version"] for answer in answers}


def started(store: Store, endpoint: Endpoint, canary: ServedVersion, rules: RolloutPolicy) -> int:
    number = begin(store, endpoint.name, canary, rules).number
    assert endpoint.reach(number)["error"] is None
    return number


def test_a_canary_that_agrees_comes_out_of_the_shadow(store: Store, serving: Endpoint):
    """It answers copies only, until it is shown to agree; what it answered then is in the ledger."""
    twin = publish_version(store, "1").model_copy(update={"version": "2"})  # the same weights, another artifact
    number = started(store, serving, twin, policy())
    assert ask(serving, 10) == {"1"}
    rollout = serving.status()["models"]["digits"]["rollout"]
    assert (rollout["weight"], rollout["counts"][0]["canary"]["differing"]) == (0, 0)
    assert "of 30 copied requests" in rollout["waits_for"]
    until(lambda: ask(serving, 5) and actions(store, serving.name, number)[-1:] == ["promote"], "the promotion")
    end = until_decided(store, serving.name, number)
    assert actions(store, serving.name, number) == ["advance", "promote"]
    assert [counts.weight for counts in end.counts] == [0, 50]
    assert end.counts[0].canary.requests >= 30
    assert "of them were answered otherwise" not in end.reasons
    assert any("0 of" in reason and "copied requests" in reason for reason in end.reasons)


def test_a_canary_that_disagrees_goes_back_unheard(store: Store, serving: Endpoint):
    """Other answers than the stable version's send it back before it has answered anybody."""
    number = started(store, serving, publish_version(store, "3"), policy())
    heard: set[str] = set()
    until(lambda: heard.update(ask(serving, 5)) or actions(store, serving.name, number), "a decision")
    end = until_decided(store, serving.name, number)
    assert heard == {"1"}
    assert end.action == "roll_back"
    assert [check.name for check in end.checks if not check.passed] == ["agreement"]
    assert "copied requests answered otherwise than by the stable version" in end.reasons[0]


def test_a_canary_in_the_shadow_stands_in_for_nobody(store: Store, serving: Endpoint):
    """The stable version's worker dies: its requests wait for the next one."""
    started(store, serving, publish_version(store, "4"), policy(shadow={"share": 0.5, "min_requests": 10_000}))
    stable_pid, canary_pid = serving.worker_pids()
    os.kill(stable_pid, signal.SIGKILL)
    assert ask(serving, 5) == {"1"}
    assert serving.worker_pids() != [stable_pid, canary_pid]
    assert serving.client.post("/v2/models/digits/versions/4/infer", json=BODY).status_code == 404


def test_without_requests_held_out_rows_are_copied(store: Store, serving: Endpoint):
    """While nobody asks, the replay's rows are; the record says so."""
    twin = publish_version(store, "1").model_copy(update={"version": "5"})
    number = started(store, serving, twin, policy(replay={"after_seconds": 0.1}))
    end = until_decided(store, serving.name, number)
    assert end.action == "promote"
    assert end.counts[0].canary.replayed == end.counts[0].canary.requests >= 30


class TurnedModel(LinearModel):
    """Version 1 for whoever codes the two colours the other way round."""

    def __init__(self, seed: int) -> None:  # noqa: ARG002 (its number)
        super().__init__(1)
        self.weight = self.weight[[1, 0, 2, 3]]


async def begun(inside: Inside) -> dict[str, Any]:
    """The rollout's status; the canary's process may take seconds to start on a busy machine."""
    async with asyncio.timeout(60):
        while True:
            model = (await inside.client.get("/admin/status")).json()["models"]["digits"]
            if "rollout" in model:
                return model["rollout"]
            await asyncio.sleep(0.02)


async def test_a_canary_in_the_shadow_reads_the_request_itself(settings: Settings, store: Store, tmp_path: Path):
    """Two versions that code categories differently and mean the same agree; codes of the one would be nonsense to the other.
    Held-out rows, which are codes, are not copied then, and the status says so."""
    stable = publish_version(store, "1", transform=MIXED)
    twin = publish_version(store, "2", transform=TURNED, kind=TurnedModel)
    async with endpoint(settings, store, stable, tmp_path) as inside:
        name = inside.settings.endpoint_name
        number = begin(store, name, twin, policy(replay={"after_seconds": 0.05})).number
        await inside.client.post(f"/admin/notify?revision={number}")
        await begun(inside)
        await asyncio.sleep(0.5)  # several times what the replay waits for
        status = await begun(inside)
        assert status["counts"][0]["canary"]["requests"] == 0
        assert "only live ones are copied" in status["waits_for"]
        async with asyncio.timeout(60):
            while not actions(store, name, number):
                answer = await inside.client.post("/invocations", json={"inputs": MIXED_ROWS})
                assert (answer.status_code, answer.headers["modelyard-model-version"]) == (200, "1")
    end = decisions(store, name, number)[0]
    shadow = end.counts[0].canary
    assert end.action == "advance"
    assert (shadow.differing, shadow.replayed) == (0, 0)
    assert shadow.requests >= 30


class Idle:
    """A version of which only this much is asked."""

    num_in_flight = 0

    def __init__(self) -> None:
        self.submitted: list[np.ndarray] = []

    def submit(self, _waiting: object, rows: np.ndarray) -> None:
        self.submitted.append(rows)


class Bench:
    """A trial whose versions answer nothing."""

    is_over = False

    def __init__(self) -> None:
        self.stable, self.canary = Idle(), Idle()
        self.reads_alike = True


def test_copies_are_bounded_and_dropped_first():
    """Nothing is copied while the stable version has much to do or the canary owes much, nor a very long request."""
    bench = Bench()
    copier = Copier(cast("Trial", bench), Shadow(share=1))
    row, answers = np.zeros((1, 4)), {"label": ["ant"]}
    for _ in range(MAX_COPIES + 5):
        copier.offer(row, answers, 0.001)
    assert (len(bench.canary.submitted), copier.num_dropped) == (MAX_COPIES, 5)
    other = Bench()
    copier = Copier(cast("Trial", other), Shadow(share=1))
    copier.offer(np.zeros((MAX_ROWS + 1, 4)), answers, 0.001)
    other.stable.num_in_flight = BUSY_REQUESTS + 1
    copier.offer(row, answers, 0.001)
    assert (other.canary.submitted, copier.num_dropped) == ([], 2)


@pytest.mark.parametrize(
    ("expected", "answered", "says_the_same"),
    [
        ({"label": ["a"], "probability": np.float32([0.9])}, {"label": ["a"], "probability": np.float32([0.6])}, True),
        ({"label": ["a"], "probability": np.float32([0.9])}, {"label": ["b"], "probability": np.float32([0.9])}, False),
        (
            {"label": ["a"], "probability": np.float32([0.9])},
            {"label": ["a"], "probability": np.float32([np.nan])},
            False,
        ),
        ({"label": np.int64([1])}, {"label": np.int64([2])}, False),
        ({"value": np.float32([100.0])}, {"value": np.float32([104.0])}, True),
        ({"value": np.float32([100.0])}, {"value": np.float32([106.0])}, False),
        ({"value": np.float32([100.0])}, {"value": np.float32([100.0, 1.0])}, False),
        ({"value": np.float32([1.0])}, {"other": np.float32([1.0])}, False),
    ],
)
def test_what_it_means_to_agree(expected: dict, answered: dict, says_the_same: bool):
    """Labels are equal, numbers near and finite, names and shapes the same."""
    assert agree(expected, answered, 0.05) is says_the_same
