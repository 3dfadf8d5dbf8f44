"""Rollouts that the endpoint decides by itself, from the policy in the revision."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from modelyard import transitions
from modelyard.errors import ConfigError, NotFound, RolloutBusy
from modelyard.gates import RolloutPolicy
from modelyard.revisions import (
    Decision,
    ServedVersion,
    latest_revision,
    propose_revision,
    publish_status,
    replica_statuses,
)
from modelyard.rollout import answer
from modelyard.serve import judging, reconcile
from modelyard.settings import Settings
from modelyard.storage import Store
from tests.serve.canaries import ODD_ROW, NoModel, OddModel, SlowModel, actions, begin, decisions, until_decided
from tests.serve.inprocess import endpoint as inside
from tests.serve.load import BODY
from tests.serve.packages import MIXED, publish_version, roll_out
from tests.serve.processes import TOKEN, Endpoint, free_port, until

INFER = "/v2/models/digits/infer"


def policy(**changes: Any) -> RolloutPolicy:
    """Half of the requests at once, and only real ones."""
    return RolloutPolicy.model_validate(
        {"steps": (50, 100), "min_requests": 20, "min_seconds": 0, "replay": {"enabled": False}} | changes
    )


def started(store: Store, endpoint: Endpoint, canary: ServedVersion, rules: RolloutPolicy) -> int:
    """Begin a rollout and have the endpoint take the canary in; the revision's number."""
    number = begin(store, endpoint.name, canary, rules).number
    status = endpoint.reach(number)
    assert status["error"] is None, status
    return number


def ask(endpoint: Endpoint, count: int, row: list[float] | None = None) -> Counter[str]:
    """One request after the other; the answers by version."""
    body = {"inputs": [BODY["inputs"][0] | {"data": row}]} if row else BODY
    return Counter(endpoint.client.post(INFER, json=body).headers["Modelyard-Model-Version"] for _ in range(count))


def kill_canary_until_decided(store: Store, endpoint: Endpoint, after: int) -> None:
    """kill -9 of each worker of the canary, until the ledger has a decision."""

    def canary() -> int | None:
        # Between the decision and this look the canary may be gone: then there is nobody left to kill.
        _, *others = endpoint.status()["models"]["digits"]["versions"]
        return others[-1]["worker_pid"] if others else None

    killed: set[int] = set()
    while not actions(store, endpoint.name, after):
        pid = canary()
        if pid and pid not in killed:
            assert len(killed) < 3, "three deaths were enough"
            killed.add(pid)
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def stands(store: Store, endpoint: Endpoint) -> list[tuple[str, float]]:
    """The versions and weights that the newest revision names."""
    newest = latest_revision(store, endpoint.name)
    assert newest
    return [(version.version, version.weight) for version in newest.models["digits"].versions]


def test_without_requests_held_out_rows_are_replayed(store: Store, serving: Endpoint):
    """The default policy takes a good version through every step by itself, and the record says what that proves."""
    number = started(store, serving, publish_version(store, "2"), RolloutPolicy())
    end = until_decided(store, serving.name, number)
    assert actions(store, serving.name, number) == ["advance", "advance", "promote"]
    assert [counts.weight for counts in end.counts] == [1, 10, 50]
    assert all(counts.canary.requests >= 200 for counts in end.counts)
    assert end.reasons == [
        "all requests were held-out rows replayed by the endpoint: that proves stability, not quality"
    ]
    assert stands(store, serving) == [("2", 100)]
    until(lambda: ask(serving, 1)["2"], "the new version")
    assert serving.status()["models"]["digits"]["previous"]["version"] == "1"


@pytest.mark.parametrize(
    ("bound", "most"), [({"max_requests": 30}, 30), ({"max_seconds": 0.2, "max_requests": 10**6}, 10**6)]
)
def test_replaying_ends_at_its_bounds(store: Store, serving: Endpoint, bound: dict[str, float], most: int):
    """So many requests of the canary, or so long; then the rollout waits for real ones, as the policy says."""
    rules = policy(min_requests=1_000_000, replay={"after_seconds": 0} | bound, gates={"latency": False})
    number = started(store, serving, publish_version(store, "17"), rules)

    def replayed() -> int:
        return serving.status()["models"]["digits"]["rollout"]["counts"][0]["canary"]["replayed"]

    def is_over() -> bool:
        before = replayed()
        time.sleep(0.3)
        return 0 < before == replayed()

    until(is_over, "the end of the replaying")
    assert min(most, 30) <= replayed() <= most
    assert actions(store, serving.name, number) == []


def test_answers_that_are_no_numbers_send_a_canary_back(store: Store, serving: Endpoint):
    """What golden rows cannot show, real requests do: the canary goes back on its own, with the evidence."""
    number = started(store, serving, publish_version(store, "3", kind=OddModel), policy())
    until(lambda: ask(serving, 5, ODD_ROW) and actions(store, serving.name, number), "a decision")
    end = until_decided(store, serving.name, number)
    assert ask(serving, 10) == {"1": 10}
    assert (end.action, end.version) == ("roll_back", "3")
    assert [check.name for check in end.checks if not check.passed] == ["quality"]
    assert 10 <= end.counts[0].canary.odd <= 20
    assert stands(store, serving) == [("1", 100)]


def test_a_slower_canary_goes_back(store: Store, serving: Endpoint):
    """Answers above the threshold that the stable version's first answers fixed fall on the canary too often."""
    gates = {"latency_floor_seconds": 0.0, "tolerated_slow_ratio": 1.5}
    number = started(store, serving, publish_version(store, "4", kind=SlowModel), policy(steps=(10, 100), gates=gates))
    until(lambda: ask(serving, 20) and actions(store, serving.name, number), "a decision")
    end = until_decided(store, serving.name, number)
    assert [check.name for check in end.checks if not check.passed] == ["latency"]
    assert end.counts[0].canary.slow <= 100


def test_a_canary_whose_worker_keeps_dying_goes_back(store: Store, serving: Endpoint):
    """Three deaths end the rollout at once; no request is lost over them."""
    number = started(store, serving, publish_version(store, "5"), policy(min_requests=10_000))
    kill_canary_until_decided(store, serving, number)
    end = until_decided(store, serving.name, number)
    assert end.action == "roll_back"
    assert "worker died 3 times" in end.reasons[0]
    assert ask(serving, 5) == {"1": 5}


def test_what_others_answered_for_a_canary_is_nothing_to_its_credit(store: Store, serving: Endpoint):
    """Its worker dies and cannot come back: requests are answered in its place and prove nothing, so it is not promoted,
    not by thin traffic either; after a bound it goes back."""
    gates = {"max_error_rate": 0.5, "max_crashes": 1000, "max_unready_seconds": 1.5}
    canary = publish_version(store, "16")
    number = started(store, serving, canary, policy(gates=gates, max_seconds=0.5, when_thin="promote"))
    [model] = serving.log.parent.glob(f"endpoint/cache/{canary.artifact.digest}/model.onnx")
    model.unlink()
    objects = [found.uri for found in store.list(f"{canary.artifact.uri}/") if found.uri.endswith(model.name)]
    assert store.delete(objects) > 0  # or it would be fetched anew
    os.kill(serving.status()["models"]["digits"]["versions"][1]["worker_pid"], signal.SIGKILL)
    assert ask(serving, 80) == {"1": 80}
    told = serving.status()["models"]["digits"]["rollout"]
    assert told["waits_for"] == "the canary has no living worker; others answer for it"
    counts = told["counts"][0]["canary"]
    assert counts["stand_ins"] == counts["requests"] >= 20
    end = until_decided(store, serving.name, number)
    assert actions(store, serving.name, number) == ["roll_back"]
    assert "no living worker" in end.reasons[0]


@pytest.mark.parametrize(("when_thin", "action"), [("promote", "promote"), ("roll_back", "roll_back")])
def test_thin_traffic_ends_as_the_policy_says(store: Store, serving: Endpoint, when_thin: str, action: str):
    """Nobody asks, nothing is replayed: after the bound the policy decides, and the ledger says that it did."""
    rules = policy(max_seconds=0.2, when_thin=when_thin)
    end = until_decided(store, serving.name, started(store, serving, publish_version(store, "6"), rules))
    assert end.action == action
    assert "0 of 20 requests of its step, and the policy says" in end.reasons[0]


def test_a_held_rollout_says_what_it_waits_for_and_a_person_ends_it(store: Store, serving: Endpoint):
    """It stays where it is; no other rollout of the model may begin; going back ends it within 20 ms of the notice."""
    number = started(store, serving, publish_version(store, "7"), policy(max_seconds=0.1))
    time.sleep(0.3)
    told = serving.status()["models"]["digits"]["rollout"]
    assert (told["canary"], told["weight"]) == ("7", 50)
    assert told["waits_for"] == "the canary has 0 of 20 requests of its step"
    with pytest.raises(RolloutBusy, match="version 7 is at 50 %"):
        begin(store, serving.name, publish_version(store, "8"), RolloutPolicy())
    back = propose_revision(
        store,
        serving.name,
        lambda current: transitions.go_back(current, "digits", None),
        reason="go back",
        author="pytest",
        decision=Decision(model="digits", action="return", version="1"),
    )
    serving.reach(back.number)
    assert ask(serving, 10) == {"1": 10}
    assert actions(store, serving.name, number) == ["return"]


def test_all_requests_at_once_are_watched(store: Store, serving: Endpoint):
    """Blue-green: the canary answers everything, and goes back when it fails; the old version was warm."""
    rules = policy(kind="blue_green", bake_seconds=60, gates={"max_error_rate": 0.01})
    number = started(store, serving, publish_version(store, "9"), rules)
    assert ask(serving, 10) == {"9": 10}
    assert stands(store, serving) == [("1", 0), ("9", 100)]
    kill_canary_until_decided(store, serving, number)
    assert until_decided(store, serving.name, number).action == "roll_back"
    assert ask(serving, 5) == {"1": 5}


@pytest.mark.parametrize(
    ("flaw", "words"),
    [
        ({"golden_shift": 0.01}, "golden rows differ"),
        ({"transform": MIXED}, "other columns than the version that serves"),
        ({"classes": (1, 2, 3)}, "it answers"),
        ({"is_signed": False}, "it is unsigned"),
        ({"kind": NoModel}, "model.onnx"),
    ],
)
def test_a_canary_that_cannot_be_served_is_given_up(store: Store, serving: Endpoint, flaw: dict, words: str):
    """Wrong answers on golden rows, another schema, a file that is no model: no request reaches it, and the endpoint itself
    undoes the rollout."""
    number = begin(store, serving.name, publish_version(store, "10", **flaw), policy()).number
    serving.notify()
    end = until_decided(store, serving.name, number)
    assert end.action == "give_up"
    assert words in end.reasons[0]
    assert ask(serving, 5) == {"1": 5}
    until(lambda: serving.status()["error"] is None, "a status without the error")
    assert decisions(store, serving.name, number)[-1] == end


@pytest.mark.parametrize(("factor", "action"), [(1e9, "promote"), (1e-9, "roll_back")])
def test_live_latency_is_held_against_the_compression(store: Store, serving: Endpoint, factor: float, action: str):
    """What the endpoint measures is reported as a factor of what compression measured, and a bound on it is a gate."""
    rules = policy(min_requests=5, gates={"max_error_rate": 0.5, "max_latency_factor": factor})
    number = started(store, serving, publish_version(store, "12", measured_ms=0.05), rules)
    until(lambda: ask(serving, 5) and actions(store, serving.name, number), "a decision")
    end = until_decided(store, serving.name, number)
    assert end.action == action
    assert any("times the 0.05 ms of its compression" in reason for reason in end.reasons)


@pytest.mark.parametrize(("approved", "story"), [(True, ["approve", "promote"]), (False, ["roll_back"])])
def test_a_person_has_the_last_word_where_the_policy_says_so(
    settings: Settings, store: Store, serving: Endpoint, approved: bool, story: list[str]
):
    """The canary stays at its last step until somebody who has a name says yes or no; the ledger keeps who it was."""
    rules = policy(min_requests=5, approval=True, gates={"max_error_rate": 0.5})
    number = started(store, serving, publish_version(store, "13"), rules)
    waits_for = lambda: serving.status()["models"]["digits"]["rollout"]["waits_for"]  # noqa: E731
    until(lambda: ask(serving, 5) and waits_for() == "a person's approval", "the wait")
    own = settings.model_copy(
        update={
            "endpoint_url": serving.url,
            "endpoint_name": serving.name,
            "endpoint_admin_token": SecretStr(TOKEN),
        }
    )
    with pytest.raises(ConfigError, match="needs the name"):
        answer(store, own, "digits", approved=approved, by=" ")
    with pytest.raises(NotFound, match="no rollout of 'other'"):
        answer(store, own, "other", approved=approved, by="ada")
    answer(store, own, "digits", approved=approved, by="ada", reason="it is Friday")
    until_decided(store, serving.name, number)
    assert actions(store, serving.name, number) == story
    said = decisions(store, serving.name, number)[0].reasons[0]
    assert said == f"{'approved' if approved else 'refused'} by ada: it is Friday"


def test_a_start_serves_the_stable_version_when_the_canary_cannot_be_loaded(
    store: Store, serving: Endpoint, stable: ServedVersion
):
    """Killed in a rollout, the canary's cached file damaged, the store away: what served before serves again."""
    canary = publish_version(store, "14")
    started(store, serving, canary, policy(min_requests=10_000))
    state = serving.log.parent / "endpoint" / "state.json"
    until(lambda: canary.artifact.digest in state.read_text(), "the local state")
    serving.kill()
    [model] = serving.log.parent.glob(f"endpoint/cache/{canary.artifact.digest}/model.onnx")
    model.write_bytes(model.read_bytes()[:-1])
    serving.start(store_url=f"http://127.0.0.1:{free_port()}")
    until(lambda: serving.client.get("/readyz").status_code == 200, "readiness")
    assert ask(serving, 10) == {"1": 10}
    serving.kill()


def test_one_key_stays_with_one_version_and_counts_once(store: Store, serving: Endpoint):
    """Keys keep their version while others are spread over both, and the canary's keep it while its share grows; one client's
    failures are one bad event."""
    rules = policy(steps=(30, 60, 100), min_requests=10_000)
    number = started(store, serving, publish_version(store, "15", kind=OddModel), rules)

    def answering(key: str, row: list[float] | None = None) -> str:
        body = {"inputs": [BODY["inputs"][0] | {"data": row}]} if row else BODY
        response = serving.client.post(INFER, json=body, headers={"Modelyard-Key": key})
        return response.headers["Modelyard-Model-Version"]

    def of_the_canary() -> set[str]:
        versions = {key: {answering(key) for _ in range(2)} for key in map(str, range(16))}
        assert all(len(found) == 1 for found in versions.values())
        assert set.union(*versions.values()) == {"1", "15"}
        return {key for key, found in versions.items() if found == {"15"}}

    first = of_the_canary()
    advance = propose_revision(
        store,
        serving.name,
        lambda now: transitions.advance(now, "digits", now.models["digits"].rollout.id, 1, [], None),
        reason="more",
        author="pytest",
    )
    serving.reach(advance.number)
    assert first < of_the_canary()
    canary_key = min(first)
    assert {answering(canary_key, ODD_ROW) for _ in range(30)} == {"15"}
    assert actions(store, serving.name, number) == []
    assert serving.status()["models"]["digits"]["rollout"]["counts"][0]["canary"]["odd"] == 1


async def test_a_status_that_is_being_written_holds_up_no_notice(
    settings: Settings, store: Store, stable: ServedVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The bucket does not take the replica's status: a revision that somebody tells of is served all the same."""
    goes_on, asked = threading.Event(), threading.Event()

    def late(*arguments: Any) -> None:
        asked.set()
        goes_on.wait(30)
        publish_status(*arguments)

    try:
        async with inside(settings, store, stable, tmp_path) as one:
            monkeypatch.setattr(reconcile, "publish_status", late)
            name = one.settings.endpoint_name
            for _ in range(2):  # the first gives it a status to write
                number = roll_out(store, name, publish_version(store, "1")).number
                await one.client.post("/admin/notify", params={"revision": number})
                router = one.app.inferences.router
                async with asyncio.timeout(15):
                    while router.table.revision.number < number:  # noqa: ASYNC110 (nothing announces it)
                        await asyncio.sleep(0.01)
                await asyncio.to_thread(asked.wait, 15)
            assert not goes_on.is_set()
    finally:
        goes_on.set()


async def test_a_store_that_answers_late_holds_up_no_decision(
    settings: Settings, store: Store, stable: ServedVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """What other replicas have counted is asked for and does not come: the rollout is decided by what is known."""
    goes_on = threading.Event()

    def late(*arguments: Any) -> Any:
        goes_on.wait(30)
        return replica_statuses(*arguments)

    monkeypatch.setattr(judging, "replica_statuses", late)
    try:
        async with inside(settings, store, stable, tmp_path) as one:
            twin = publish_version(store, "1").model_copy(update={"version": "2"})
            name = one.settings.endpoint_name
            number = begin(store, name, twin, policy(replay={"after_seconds": 0.1})).number
            await one.client.post("/admin/notify")
            end = await asyncio.to_thread(until_decided, store, name, number, 15)
            assert end.action == "promote"
            assert not goes_on.is_set()
    finally:
        goes_on.set()
