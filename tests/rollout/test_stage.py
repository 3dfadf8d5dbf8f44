"""Rollout and rollback against the real registry and the real endpoint."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Attempt, Catalog, Origin, Work
from modelyard.compress import CompressConfig, compress
from modelyard.errors import EndpointUnavailable, NotFound, Refused, RolloutFailed
from modelyard.evaluate import EvaluateConfig, evaluate
from modelyard.gates import RolloutPolicy
from modelyard.preprocess import PreprocessConfig, preprocess, snapshot
from modelyard.revisions import ModelState, latest_revision, propose_revision, revisions_since
from modelyard.rollout import Look, Release, RolloutConfig, rollback, rollout
from modelyard.rollout.agreement import disagreements
from modelyard.rollout.aliases import follow
from modelyard.rollout.endpoint import EndpointClient
from modelyard.rollout.watch import Watcher, ignore
from modelyard.settings import Settings
from modelyard.storage import Store
from modelyard.tracking import Tracker
from tests.conftest import Installation
from tests.serve.packages import publish_version
from tests.serve.processes import until
from tests.workbench import blobs, parquet_bytes, quick_model, upload

NAME = "blobs"
CONFIG = RolloutConfig(takeover_seconds=30)
LENIENT = EvaluateConfig(floor=0.1, allowed_drop_against_float=1, allowed_drop_against_champion=1)


class Bench:
    """Candidates and verdicts in the bucket that the endpoint watches."""

    def __init__(self, stack: Installation) -> None:
        self.settings = stack.settings
        self.catalog = Catalog(Store(stack.settings))
        self.tracker = Tracker(stack.settings)
        folder = upload(self.catalog.store, {"rows.parquet": parquet_bytes(blobs())})
        source = snapshot(self.catalog, folder, Origin())
        self.dataset = preprocess(self.catalog, source.ref, PreprocessConfig(target="kind"), Origin()).ref

    def candidate(self, epochs: int) -> ArtifactRef:
        model = quick_model(self.catalog, self.dataset, epochs)
        return compress(self.catalog, model, self.dataset, CompressConfig(), Origin()).ref

    def verdict(self, candidate: ArtifactRef, config: EvaluateConfig = LENIENT) -> ArtifactRef:
        return evaluate(self.catalog, candidate, self.dataset, None, config, Origin()).ref

    def forged_verdict(self, candidate: ArtifactRef) -> ArtifactRef:
        """A pass whose golden outputs no model gives."""
        honest = self.verdict(candidate)
        golden = json.loads(self.catalog.read(honest, "golden.json"))
        golden["outputs"] = [[value + 1 for value in row] for row in golden["outputs"]]

        def build(attempt: Attempt) -> None:
            attempt.add_json("golden.json", golden)
            attempt.facts.update(passed=True, reasons=[])

        work = Work(kind="verdict", config={"forged": 1}, inputs={"candidate": candidate}, code_version="test")
        return self.catalog.produce(work, build, Origin()).ref

    def roll_out(
        self,
        candidate: ArtifactRef,
        verdict: ArtifactRef,
        watcher: Watcher = ignore,
        config: RolloutConfig = CONFIG,
        settings: Settings | None = None,
        origin: Origin = Origin(flow_run_id="test"),  # noqa: B008 (frozen)
    ) -> Release:
        return rollout(
            self.catalog,
            self.tracker,
            settings or self.settings,
            model_name=NAME,
            candidate=candidate,
            verdict=verdict,
            config=config,
            origin=origin,
            watcher=watcher,
        )

    def serving(self) -> str:
        response = httpx.get(f"{self.settings.serving_url}/v2/models/{NAME}", trust_env=False)
        return response.headers["Modelyard-Model-Version"]


@pytest.fixture(scope="module")
def bench(stack: Installation) -> Bench:
    return Bench(stack)


@pytest.fixture(scope="module")
def first(bench: Bench) -> Release:
    candidate = bench.candidate(epochs=20)
    return bench.roll_out(candidate, bench.verdict(candidate))


def test_first_rollout_serves_and_is_champion(bench: Bench, first: Release):
    """The version is registered, answers, and carries both aliases."""
    assert first.changed
    assert bench.serving() == first.version
    for alias in ("champion", "challenger"):
        known = bench.tracker.version_by_alias(NAME, alias)
        assert known is not None
        assert (known.version, known.artifact) == (first.version, first.artifact)


def test_rollout_of_what_serves_changes_nothing(bench: Bench, first: Release):
    """Rolling out again registers no version and writes no revision."""
    again = bench.roll_out(first.artifact, bench.verdict(first.artifact), origin=Origin(flow_run_id="another"))
    assert not again.changed
    assert (again.version, again.revision) == (first.version, first.revision)


def test_first_version_has_nothing_to_go_back_to(bench: Bench, first: Release):
    """Going back is refused by name, and the version serves on."""
    with pytest.raises(NotFound, match="no earlier version"):
        rollback(bench.catalog, bench.tracker, bench.settings, model_name=NAME, config=CONFIG, origin=Origin())
    with pytest.raises(NotFound, match="serves no model 'stranger'"):
        rollback(bench.catalog, bench.tracker, bench.settings, model_name="stranger", config=CONFIG, origin=Origin())
    assert bench.serving() == first.version


def test_version_that_fails_its_golden_rows_never_serves(bench: Bench, first: Release):
    """The endpoint refuses it, the old version serves on, the ledger says so again, and champion stays."""
    candidate = bench.candidate(epochs=25)
    with pytest.raises(RolloutFailed, match="golden"):
        bench.roll_out(candidate, bench.forged_verdict(candidate))
    assert bench.serving() == first.version
    newest = latest_revision(bench.catalog.store, bench.settings.endpoint_name)
    assert newest is not None
    assert newest.models[NAME].versions[0].version == first.version
    champion = bench.tracker.version_by_alias(NAME, "champion")
    assert champion is not None
    assert champion.version == first.version
    hasty = CONFIG.model_copy(update={"policy": RolloutPolicy(kind="all_at_once")})
    run = {"config": hasty, "origin": Origin(flow_run_id="a hasty one")}
    away = bench.settings.model_copy(update={"endpoint_url": "http://127.0.0.1:9"})
    forged = bench.forged_verdict(candidate)
    with pytest.raises(EndpointUnavailable):
        bench.roll_out(candidate, forged, settings=away, **run)
    with pytest.raises(RolloutFailed, match="golden"):
        bench.roll_out(candidate, forged, **run)
    restored = latest_revision(bench.catalog.store, bench.settings.endpoint_name)
    assert restored is not None
    assert restored.models[NAME] == newest.models[NAME], "also when the first try could not see it fail"


def test_without_a_pass_nothing_is_rolled_out(bench: Bench, first: Release):
    """A refusal, or a pass that another candidate earned, stops a rollout before anything is registered."""
    candidate = bench.candidate(epochs=1)
    strict = bench.verdict(candidate, EvaluateConfig(floor=1.0))
    with pytest.raises(Refused, match="below the floor"):
        bench.roll_out(candidate, strict)
    with pytest.raises(Refused, match="judged another model"):
        bench.roll_out(candidate, bench.verdict(first.artifact))
    assert candidate.digest not in [version.artifact.digest for version in bench.tracker.versions()]


def test_endpoint_that_is_away_is_a_transient_error_and_the_next_try_finishes(bench: Bench, first: Release):
    """The revision stands before the endpoint is asked, so a retry finds it and only waits for the endpoint."""
    candidate = bench.candidate(epochs=30)
    verdict = bench.verdict(candidate)
    away = bench.settings.model_copy(update={"endpoint_url": "http://127.0.0.1:9"})
    with pytest.raises(EndpointUnavailable):
        rollout(
            bench.catalog,
            bench.tracker,
            away,
            model_name=NAME,
            candidate=candidate,
            verdict=verdict,
            config=CONFIG,
            origin=Origin(),
        )
    release = bench.roll_out(candidate, verdict)
    assert bench.serving() == release.version
    story = [one.decision for one in revisions_since(bench.catalog.store, bench.settings.endpoint_name)]
    mine = [decision.action for decision in story if (decision.model, decision.version) == (NAME, release.version)]
    assert mine == ["start", "advance", "advance", "promote"], "it was begun once, and judged"
    back = rollback(bench.catalog, bench.tracker, bench.settings, model_name=NAME, config=CONFIG, origin=Origin())
    assert bench.serving() == back.version == first.version
    with pytest.raises(NotFound, match="never served all requests"):
        go_back(bench, "99")
    assert bench.serving() == first.version
    assert go_back(bench, release.version).version == bench.serving() == release.version
    champion = bench.tracker.version_by_alias(NAME, "champion")
    assert champion is not None
    assert champion.version == release.version


def test_a_rollout_goes_on_without_who_began_it(bench: Bench, first: Release):
    """Who watches dies: the endpoint decides alone, only the alias waits; the next try finds it decided, and sets it."""
    candidate = bench.candidate(epochs=35)
    verdict = bench.verdict(candidate)

    def die(look: Look) -> None:
        raise InterruptedError(f"at {look.weight} %")

    with pytest.raises(InterruptedError):
        bench.roll_out(candidate, verdict, die)

    def served() -> bool:
        newest = latest_revision(bench.catalog.store, bench.settings.endpoint_name)
        assert newest is not None
        state = newest.models[NAME]
        return state.rollout is None and state.stable.artifact == candidate

    until(served, "the promotion", seconds=60)
    assert any("champion" in sentence for sentence in disagreements(bench.catalog, bench.tracker, bench.settings))
    newest = latest_revision(bench.catalog.store, bench.settings.endpoint_name)
    release = bench.roll_out(candidate, verdict)
    assert latest_revision(bench.catalog.store, bench.settings.endpoint_name) == newest, "nothing was written again"
    until(lambda: bench.serving() == release.version, "the new version")
    assert disagreements(bench.catalog, bench.tracker, bench.settings) == []


def go_back(
    bench: Bench,
    version: str,
    settings: Settings | None = None,
    origin: Origin = Origin(),  # noqa: B008 (frozen)
) -> Release:
    return rollback(
        bench.catalog,
        bench.tracker,
        settings or bench.settings,
        model_name=NAME,
        config=CONFIG,
        origin=origin,
        version=version,
    )


def test_going_back_by_one_is_not_done_twice(bench: Bench, first: Release):
    """The endpoint is away when it is told: the same run's next try finds what it has written, and goes no further."""
    newest = latest_revision(bench.catalog.store, bench.settings.endpoint_name)
    assert newest is not None
    state, run = newest.models[NAME], Origin(flow_run_id="a way back")
    assert state.previous is not None
    away = bench.settings.model_copy(update={"endpoint_url": "http://127.0.0.1:9"})
    for _ in range(2):
        with pytest.raises(EndpointUnavailable):
            go_back(bench, "", away, run)
    assert go_back(bench, "", origin=run).version == bench.serving() == state.previous.version
    assert go_back(bench, "", origin=Origin(flow_run_id="another")).version == bench.serving() == state.stable.version


def test_a_way_back_that_fails_touches_no_other_model(bench: Bench, first: Release, monkeypatch: pytest.MonkeyPatch):
    """Another model moves on while the endpoint refuses: this one is restored, the other stays where it is by then. What
    was deleted since is refused before anything is written."""
    store, name = bench.catalog.store, bench.settings.endpoint_name
    newest = latest_revision(store, name)
    assert newest is not None
    state, bad = newest.models[NAME], publish_version(store, "99", golden_shift=1)

    def write(models: dict[str, ModelState]) -> None:
        propose_revision(store, name, lambda current: {**current.models, **models}, reason="a test", author="pytest")

    write({NAME: ModelState(versions=[bad])})
    write({NAME: state})
    await_revision = EndpointClient.await_revision

    def await_beside_another(*given: Any) -> Any:
        write({"bystander": ModelState(versions=[state.stable])})
        return await_revision(*given)

    with monkeypatch.context() as patch:
        patch.setattr(EndpointClient, "await_revision", await_beside_another)
        with pytest.raises(RolloutFailed, match="golden"):
            go_back(bench, "99")
    newest = latest_revision(store, name)
    assert newest is not None
    assert newest.models == {**newest.models, NAME: state, "bystander": ModelState(versions=[state.stable])}
    without = propose_revision(
        store,
        name,
        lambda now: {model: one for model, one in now.models.items() if model != "bystander"},
        reason="a test",
        author="pytest",
    )
    with EndpointClient(bench.settings) as endpoint:
        endpoint.notify()
        assert endpoint.await_revision(without.number, 30).error is None
    assert bench.serving() == state.stable.version
    store.delete([f"{bad.verdict.uri}/manifest.json"])
    newest = latest_revision(store, name)
    with pytest.raises(NotFound, match=r"version 99 served once, and its verdict was deleted since"):
        go_back(bench, "99")
    assert latest_revision(store, name) == newest


def test_all_who_speak_of_what_is_served_agree_until_one_does_not(bench: Bench, first: Release):
    """Nothing to say of an orderly installation; a moved alias, a lost manifest and a stopped endpoint are each named. The
    alias is brought back to what the ledger says, unless the endpoint cannot be asked."""
    assert disagreements(bench.catalog, bench.tracker, bench.settings) == []
    newest = latest_revision(bench.catalog.store, bench.settings.endpoint_name)
    assert newest is not None
    state = newest.models[NAME]
    assert state.previous is not None
    bench.tracker.set_alias(NAME, "champion", state.previous.version)
    [sentence] = disagreements(bench.catalog, bench.tracker, bench.settings)
    assert f"calls {NAME} version {state.previous.version} champion" in sentence
    away = bench.settings.model_copy(update={"endpoint_url": "http://127.0.0.1:9"})
    assert follow(bench.catalog, bench.tracker, away) == [], "the version may not serve at all"
    [sentence] = follow(bench.catalog, bench.tracker, bench.settings)
    assert f"champion of {NAME} is version {state.stable.version} now" in sentence
    assert (
        follow(bench.catalog, bench.tracker, bench.settings)
        == disagreements(bench.catalog, bench.tracker, bench.settings)
        == []
    )
    verdict = bench.catalog.store.get(f"{state.previous.verdict.uri}/manifest.json")
    bench.catalog.store.delete([f"{state.previous.verdict.uri}/manifest.json"])
    [sentence] = disagreements(bench.catalog, bench.tracker, bench.settings)
    assert f"the verdict of {NAME} version {state.previous.version} is gone" in sentence
    bench.catalog.store.put(f"{state.previous.verdict.uri}/manifest.json", verdict)
    [sentence] = disagreements(bench.catalog, bench.tracker, away)
    assert "cannot be asked" in sentence
