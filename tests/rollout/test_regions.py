"""The same model elsewhere: copied by digest, verified there, rolled out there; and back."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from signal import SIGKILL
from typing import Any

import httpx
import pytest

from commands import stack as stack_commands
from commands.parts import STORE
from modelyard.artifacts import Manifest
from modelyard.catalog import Catalog, Origin
from modelyard.errors import DigestMismatch, EndpointUnavailable
from modelyard.regions import region_settings
from modelyard.revisions import ServedVersion, latest_revision
from modelyard.rollout import agreement, is_begun_in, rollback_in, rollout_in
from modelyard.rollout.agreement import disagreements
from modelyard.rollout.regions import copy_artifact
from modelyard.settings import Settings
from modelyard.storage import Store
from tests.conftest import Installation, new_installation
from tests.rollout.yard import Yard
from tests.serve.packages import publish_version
from tests.serve.processes import TOKEN, Endpoint, until

POLICY = {
    "steps": [50, 100],
    "min_requests": 20,
    "min_seconds": 0,
    "load_seconds": 30,
    "gates": {"max_error_rate": 0.1, "latency": False},
}


class Place:
    """A region's bucket and endpoint, and its file."""

    def __init__(self, stack: Installation, name: str, home: Path, store: Settings | None = None) -> None:
        self.name = name
        self._store = store or stack.settings
        folder = stack.settings.regions_folder
        folder.mkdir(exist_ok=True)
        self._file = folder / f"{name}.env"
        self.write(url="http://127.0.0.1:9")
        self.settings = region_settings(stack.settings, name)
        self.catalog = Catalog(Store(self.settings))
        self.catalog.store.control.create_bucket()
        self.endpoint = Endpoint(self.settings, self.settings.endpoint_name, home)
        self.write(url=self.endpoint.url)
        self.endpoint.start()

    def write(self, url: str) -> None:
        secret = self._store.s3_secret_key
        assert secret
        lines = {
            "BUCKET": f"region-{self.name}",
            "S3_ENDPOINT_URL": self._store.store_url,
            "S3_ACCESS_KEY": self._store.s3_access_key,
            "S3_SECRET_KEY": secret.get_secret_value(),
            "ENDPOINT_URL": url,
            "ENDPOINT_NAME": self.name,
            "ENDPOINT_ADMIN_TOKEN": TOKEN,
        }
        self._file.write_text("".join(f"MODELYARD_{key}={value}\n" for key, value in lines.items()))
        self._file.chmod(0o600)

    def close(self) -> None:
        self.endpoint.close()
        self._file.unlink()

    def serving(self, model: str) -> str:
        answer = httpx.get(f"{self.endpoint.url}/v2/models/{model}", trust_env=False)
        return answer.headers["Modelyard-Artifact-Digest"]


@pytest.fixture(scope="module")
def eu(stack: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    place = Place(stack, "eu", tmp_path_factory.mktemp("eu"))
    yield place
    place.close()


@pytest.fixture
def yard(stack: Installation, tmp_path: Path) -> Iterator[Yard]:
    made = Yard(stack, "abroad", POLICY, tmp_path / "flows.log")
    yield made
    made.close()


def asked(yard: Yard, candidate: ServedVersion) -> dict[str, Any]:
    return {
        "model_name": yard.model,
        "candidate": candidate.artifact,
        "verdict": candidate.verdict,
        "config": yard.config,
        "origin": Origin(),
    }


def test_a_version_is_copied_verified_and_rolled_out_elsewhere(yard: Yard, eu: Place):
    """The region's bucket holds the same bytes under the same digests, its endpoint serves them; aliases stay home's; and
    back again."""
    first, second = yard.publish(1), yard.publish(2)
    for candidate in (first, second):
        yard.roll_out(candidate)
        there = rollout_in("eu", yard.catalog, yard.tracker, yard.settings, **asked(yard, candidate))
        assert there.changed
        assert there.artifact.uri.startswith("s3://region-eu/")
        assert eu.serving(yard.model) == candidate.artifact.digest
    for ref in (second.artifact, second.verdict):
        names = Manifest.model_validate_json(yard.store.get(f"{ref.uri}/manifest.json")).content.files
        copied = eu.catalog.resolve(ref.digest)
        assert copied.digest == ref.digest
        assert all(eu.catalog.read(copied, name) == yard.catalog.read(ref, name) for name in names)
    newest = latest_revision(eu.catalog.store, "eu")
    assert newest
    assert newest.decision.action == "promote"
    back = rollback_in(
        "eu", yard.tracker, yard.settings, model_name=yard.model, config=yard.config, origin=Origin()
    )  # fmt: skip
    assert back.artifact.digest == eu.serving(yard.model) == first.artifact.digest
    assert yard.tracker.version_by_alias(yard.model, "champion").artifact.digest == second.artifact.digest
    yard.assert_one_truth()
    _assert_each_disagreement_is_named(yard, eu, second)


def _assert_each_disagreement_is_named(yard: Yard, eu: Place, second: ServedVersion) -> None:
    """What `verify` says of a region: a file that is gone there, an endpoint that is away, and one left behind for long."""

    def said() -> list[str]:
        return disagreements(yard.catalog, yard.tracker, yard.settings)

    manifest = f"{eu.catalog.resolve(second.verdict.digest).uri}/manifest.json"
    body = eu.catalog.store.get(manifest)
    eu.catalog.store.delete([manifest])
    [sentence] = said()
    assert sentence.startswith(f"region eu: the verdict of {yard.model} version 2 is gone")
    eu.catalog.store.put(manifest, body)
    eu.write(url="http://127.0.0.1:9")
    [sentence] = said()
    assert sentence.startswith("region eu: the endpoint cannot be asked")
    eu.write(url=eu.endpoint.url)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(agreement, "FOLLOWS_WITHIN", timedelta(0))
        [sentence] = said()
    assert sentence.startswith(f"region eu: it serves {yard.model} version 1, the home installation 2 since")
    assert said() == []


def test_a_copy_that_was_damaged_is_not_rolled_out(yard: Yard, eu: Place):
    """Each file is read back from the region's bucket; another byte there is named, and nothing else happens."""
    candidate = yard.publish(3)
    before = latest_revision(eu.catalog.store, "eu")
    there = copy_artifact(yard.catalog, eu.catalog, candidate.artifact)
    uri = eu.catalog.manifest(there).file_uri(there.uri, "model.onnx")
    body = bytearray(eu.catalog.store.get(uri))
    body[-1] ^= 1
    eu.catalog.store.put(uri, bytes(body))
    with pytest.raises(DigestMismatch, match=r"region-eu.*model\.onnx"):
        rollout_in("eu", yard.catalog, yard.tracker, yard.settings, **asked(yard, candidate))
    assert latest_revision(eu.catalog.store, "eu") == before


def test_what_a_run_began_in_a_region_that_is_away_is_known(yard: Yard, eu: Place):
    """The canary is in the region's ledger though nobody answered there: by this run, not by another; and it is taken back."""
    candidate, run = yard.publish(3), Origin(flow_run_id="this run")
    before = eu.serving(yard.model)

    def is_begun(origin: Origin) -> bool:
        return is_begun_in("eu", yard.settings, yard.model, candidate.artifact, origin)

    assert not is_begun(run)
    eu.write(url="http://127.0.0.1:9")
    with pytest.raises(EndpointUnavailable):
        rollout_in("eu", yard.catalog, yard.tracker, yard.settings, **asked(yard, candidate) | {"origin": run})
    assert is_begun(run)
    assert not is_begun(Origin(flow_run_id="another"))
    eu.write(url=eu.endpoint.url)
    rollback_in("eu", yard.tracker, yard.settings, model_name=yard.model, config=yard.config, origin=run)
    assert not is_begun(run)
    assert eu.serving(yard.model) == before


@pytest.mark.soak
def test_a_region_that_is_away_keeps_no_canary(
    yard: Yard, eu: Place, tmp_path_factory: pytest.TempPathFactory, stack: Installation
):
    """Its endpoint dies. By hand, the places that can go back do; a rollout that comes to it goes back everywhere, and there
    too once somebody answers."""
    us = Place(stack, "us-away", tmp_path_factory.mktemp("us-away"))
    regions = "rollout.regions=[us-away, eu]"

    def served() -> set[str]:
        return {yard.state().stable.artifact.digest, eu.serving(yard.model)}

    try:
        good, newer, last = (yard.publish(4 + number) for number in range(3))
        for candidate in (good, newer):
            flow = yard.start_flow(candidate, regions)
            assert flow.wait(150) == 0, yard.log.read_text()
        us.endpoint.end(SIGKILL)
        assert yard.start_rollback(regions).wait(240) != 0
        assert "region eu went back" in yard.log.read_text()
        assert served() == {good.artifact.digest}
        assert yard.start_flow(last, regions).wait(240) != 0
        assert "region us-away goes back when its endpoint answers" in yard.log.read_text()
        assert served() == {good.artifact.digest}
        us.endpoint.start()
        until(lambda: us.serving(yard.model) == good.artifact.digest, "the way back of the region that was away")
    finally:
        us.close()


@pytest.mark.soak
def test_the_first_region_that_refuses_takes_all_back(
    yard: Yard, eu: Place, stack: Installation, tmp_path_factory: pytest.TempPathFactory
):
    """Home and the region before have it already: both go back to what they served, and the run says so."""
    us = Place(stack, "us", tmp_path_factory.mktemp("us"))
    try:
        good = yard.publish(4)
        flow = yard.start_flow(good, "rollout.regions=[eu, us]")
        assert flow.wait(120) == 0, yard.log.read_text()
        assert {yard.state().stable.artifact.digest, eu.serving(yard.model), us.serving(yard.model)} == {
            good.artifact.digest
        }
        # The third place does not trust the signature any more.
        for key in us.settings.trusted_keys_folder.glob("*.pem"):
            (us.endpoint.log.parent / key.name).write_bytes(key.read_bytes())
        us.endpoint.close()
        us.endpoint = Endpoint(
            us.settings, "us", us.endpoint.log.parent, MODELYARD_TRUSTED_KEYS=str(us.endpoint.log.parent / "nobody")
        )
        us.write(us.endpoint.url)
        us.endpoint.start()
        flow = yard.start_flow(publish_version(yard.store, "5"), "rollout.regions=[eu, us]")
        assert flow.wait(120) != 0
        said = yard.log.read_text()
        assert "in region us" in said
        assert "region eu went back" in said
        assert "the home installation went back" in said
        assert {yard.state().stable.artifact.digest, eu.serving(yard.model)} == {good.artifact.digest}
    finally:
        us.close()


@pytest.mark.soak
def test_the_rollback_flow_goes_back_everywhere(
    yard: Yard, eu: Place, stack: Installation, tmp_path_factory: pytest.TempPathFactory
):
    """Two regions, one of them on a store of its own: the flow that people start brings home and both back, in one run;
    and a second run, with no version named, nowhere else than one step on."""
    elsewhere = new_installation()
    stack_commands.up(elsewhere.settings, [STORE])
    asia = Place(stack, "asia", tmp_path_factory.mktemp("asia"), store=elsewhere.settings)
    regions = "rollout.regions=[eu, asia]"
    try:
        older, newer = yard.publish(6), yard.publish(7)
        for candidate in (older, newer):
            flow = yard.start_flow(candidate, regions)
            assert flow.wait(150) == 0, yard.log.read_text()
            assert _everywhere(yard, eu, asia) == {candidate.artifact.digest}
        assert asia.catalog.store.get(f"{asia.catalog.resolve(newer.artifact.digest).uri}/manifest.json")
        assert asia.settings.store_url != yard.settings.store_url
        assert yard.start_rollback(regions).wait(150) == 0, yard.log.read_text()
        assert _everywhere(yard, eu, asia) == {older.artifact.digest}
        yard.assert_one_truth()
        newest = latest_revision(asia.catalog.store, "asia")
        assert newest
        assert newest.decision
        assert newest.decision.action == "return"
    finally:
        asia.close()
        stack_commands.down(elsewhere.settings)
        shutil.rmtree(elsewhere.home, ignore_errors=True)


def _everywhere(yard: Yard, *places: Place) -> set[str]:
    """Digests of what home and the regions serve."""
    state = yard.state()
    assert state
    return {state.stable.artifact.digest, *(place.serving(yard.model) for place in places)}
