"""What stands in a rollout's way: slow versions, other writers, a store that says no, replicas that are away."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pydantic import SecretStr

from modelyard import transitions
from modelyard.gates import RolloutPolicy
from modelyard.ledger import history
from modelyard.revisions import Decision, Revision, ServedVersion, latest_revision, propose_revision
from modelyard.rollout.agreement import of_the_endpoint
from modelyard.settings import Settings
from modelyard.storage import Store
from tests.fronts import Front, front
from tests.serve.canaries import ODD_ROW, OddModel, SlowToLoad, actions, begin, until_decided
from tests.serve.load import BODY
from tests.serve.packages import publish_version, roll_out
from tests.serve.processes import TOKEN, Endpoint, until

INFER = "/v2/models/digits/infer"
WRITES_OF_REVISIONS = re.compile(rb"PUT \S+/revisions/")


@pytest.fixture(scope="module")
def store_front(store: Store) -> Iterator[Front]:
    """Between the endpoint and the store."""
    with front(store._settings.store_port) as opened:
        yield opened


@pytest.fixture
def serving(store: Store, endpoint: Endpoint, stable: ServedVersion, store_front: Front) -> Endpoint:
    """It serves version 1, alone, whatever the test before did."""
    store_front.refuses = None
    number = roll_out(store, endpoint.name, stable).number
    if not endpoint.runs:
        endpoint.start(f"http://127.0.0.1:{store_front.port}")
    endpoint.reach(number)
    return endpoint


def policy(**changes: Any) -> RolloutPolicy:
    """Decided within a second by held-out rows."""
    given = {"steps": (50, 100), "min_requests": 20, "min_seconds": 0, "gates": {"max_error_rate": 0.1}} | changes
    return RolloutPolicy.model_validate(given)


def answering(endpoint: Endpoint) -> str:
    return endpoint.client.post(INFER, json=BODY).raise_for_status().headers["Modelyard-Model-Version"]


def is_loading(endpoint: Endpoint, version: str) -> bool:
    return endpoint.status()["loading"] == [f"digits version {version}"]


def test_a_version_that_loads_too_slowly_is_given_up(store: Store, serving: Endpoint):
    """It is loaded for as long as the policy grants; meanwhile the status names it and the version before answers."""
    number = begin(store, serving.name, publish_version(store, "2", kind=SlowToLoad), policy(load_seconds=1)).number
    serving.notify()
    until(lambda: is_loading(serving, "2"), "the loading")
    assert answering(serving) == "1"
    end = until_decided(store, serving.name, number)
    assert end.action == "give_up"
    [reason] = end.reasons
    assert "digits version 2 took longer than 1 s to fetch, load and probe (rollout.policy.load_seconds)" in reason
    until(lambda: not serving.status()["loading"], "the end of the loading")
    assert answering(serving) == "1"


def test_a_person_goes_back_while_a_version_loads(store: Store, serving: Endpoint):
    """The way back does not wait for what it makes superfluous."""
    before = begin(store, serving.name, publish_version(store, "3", kind=SlowToLoad), policy()).number
    serving.notify()
    until(lambda: is_loading(serving, "3"), "the loading")
    back = propose_revision(
        store,
        serving.name,
        lambda current: transitions.go_back(current, "digits", None),
        reason="go back",
        author="pytest",
        decision=Decision(model="digits", action="return", version="1"),
    )
    status = serving.reach(back.number)
    assert (status["revision"], status["error"], status["loading"]) == (back.number, None, [])
    assert f"revision {before} is left for a newer one" in serving.log.read_text()
    assert actions(store, serving.name, before) == ["return"]
    assert answering(serving) == "1"


@pytest.mark.soak
def test_revisions_of_others_do_not_disturb_a_rollout(store: Store, serving: Endpoint):
    """Each of its revisions may find that somebody else's came first: it is computed again on top of that one."""
    others = [publish_version(store, "1"), publish_version(store, "2")]
    number = begin(store, serving.name, publish_version(store, "4"), policy(steps=(10, 20, 30, 40, 50, 100))).number
    serving.notify()
    written: list[Revision] = []
    while not (found := actions(store, serving.name, number)) or found[-1] != "promote":
        assert len(written) < 300, found
        written.append(roll_out(store, serving.name, others[len(written) % 2], model="other"))
    newest = latest_revision(store, serving.name)
    assert newest
    assert actions(store, serving.name, number) == ["advance"] * 4 + ["promote"]
    assert newest.models["digits"].stable.version == "4"
    assert newest.models["other"].stable.version == written[-1].models["other"].stable.version
    assert newest.number == number + len(written) + 5
    serving.reach(newest.number)
    assert answering(serving) == "4"


def test_a_store_that_takes_no_revision_holds_the_rollout(store: Store, serving: Endpoint, store_front: Front):
    """Nothing moves, the status says what is to be written and why it is not; when the store takes it, it goes on."""
    number = begin(store, serving.name, publish_version(store, "5"), policy()).number
    store_front.refuses = WRITES_OF_REVISIONS
    serving.notify()

    def waits_for() -> str:
        return serving.status()["models"]["digits"].get("rollout", {}).get("waits_for", "")

    said = until(lambda: "to be written" in (now := waits_for()) and now, "the refusal")
    assert "promote digits version 5" in said
    assert "AccessDenied" in said
    assert actions(store, serving.name, number) == []
    shares = [version["share"] for version in serving.status()["models"]["digits"]["versions"]]
    assert shares == [50, 50]
    store_front.refuses = None
    assert until_decided(store, serving.name, number).action == "promote"


def test_a_way_back_that_the_store_does_not_take_is_gone_already(
    settings: Settings, store: Store, serving: Endpoint, store_front: Front
):
    """The canary has no weight in memory while its revision cannot be written; the status says so, and so does `verify`."""
    rules = policy(replay={"enabled": False}, min_requests=10_000)
    number = begin(store, serving.name, publish_version(store, "7", kind=OddModel), rules).number
    serving.reach(number)
    store_front.refuses = WRITES_OF_REVISIONS
    odd = {"inputs": [BODY["inputs"][0] | {"data": ODD_ROW}]}

    def is_owed() -> bool:
        serving.client.post(INFER, json=odd)
        return "`roll back digits version 7` to be written" in (serving.status()["error"] or "")

    until(is_owed, "the way back")
    assert {answering(serving) for _ in range(10)} == {"1"}
    newest = latest_revision(store, serving.name)
    assert newest
    assert newest.number == number
    own = settings.model_copy(update={"endpoint_url": serving.url, "endpoint_admin_token": SecretStr(TOKEN)})
    said = "; ".join(of_the_endpoint(own, newest))
    assert f"the endpoint gives digits version 7 0 % of the requests, revision {number} 50 %" in said
    assert "AccessDenied" in said
    store_front.refuses = None
    assert until_decided(store, serving.name, number).action == "roll_back"
    until(lambda: serving.status()["error"] is None, "a status without the error")


def test_a_rollout_goes_on_without_half_of_the_replicas(
    store: Store, serving: Endpoint, new_endpoint: Callable[[], Endpoint]
):
    """One of two replicas is killed in a rollout: what it had counted still counts, the other one decides; restarted it
    serves what was decided."""
    second = new_endpoint()
    second.name = serving.name
    second.start()
    until(lambda: second.client.get("/readyz").status_code == 200, "the second replica")
    rules = policy(min_requests=60, replay={"enabled": False})
    number = begin(store, serving.name, publish_version(store, "6"), rules).number
    for replica in (serving, second):
        assert replica.reach(number)["error"] is None
        for _ in range(60):
            answering(replica)
    status = f"{store.root}/endpoints/{serving.name}/replicas/"
    until(lambda: all(b'"requests":' in store.get(info.uri) for info in store.list(status)), "the counts of both")
    second.kill()
    until(lambda: answering(serving) and actions(store, serving.name, number), "a decision")
    end = until_decided(store, serving.name, number)
    assert end.action == "promote"
    newest = latest_revision(store, serving.name)
    assert newest
    serving.reach(newest.number)
    second.start()
    second.reach(newest.number)
    assert answering(serving) == answering(second) == "6"
    assert [span.version for span in history(store, serving.name, "digits") if span.end is None] == ["6"]
