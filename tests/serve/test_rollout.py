"""How an endpoint follows its revisions, and what it refuses to follow."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from modelyard.artifacts import ArtifactRef, Manifest
from modelyard.revisions import ModelState, ReplicaStatus, ServedVersion, propose_revision
from modelyard.signing.keys import create_key
from modelyard.signing.sign import sign
from modelyard.storage import Store
from tests.serve.load import BODY, under_load
from tests.serve.packages import publish_version, roll_out
from tests.serve.processes import Endpoint, lives, until

INFER = "/v2/models/digits/infer"


def answering_version(endpoint: Endpoint) -> str:
    return endpoint.client.post(INFER, json=BODY).raise_for_status().headers["Modelyard-Model-Version"]


def damage(store: Store, ref: ArtifactRef, name: str) -> str:
    """Flip one byte of an artifact's file in the bucket; returns its URI."""
    manifest = Manifest.model_validate_json(store.get(f"{ref.uri}/manifest.json"))
    uri = f"{ref.uri}/{manifest.file_path(name)}"
    body = bytearray(store.get(uri))
    body[len(body) // 2] ^= 1
    store.put(uri, bytes(body))
    return uri


async def test_a_new_version_takes_over_under_load(store: Store, new_endpoint: Callable[[], Endpoint]):
    """Not one request fails while versions change twice, and each answer is by the version that it names."""
    endpoint = new_endpoint()
    first, second = publish_version(store, "1"), publish_version(store, "2")
    roll_out(store, endpoint.name, first)
    endpoint.start().reach(1)
    [old_pid] = endpoint.worker_pids()

    async def change() -> None:
        roll_out(store, endpoint.name, second, previous=first)
        await asyncio.to_thread(endpoint.reach, 2)
        assert lives(old_pid), "the previous version was not kept warm"
        roll_out(store, endpoint.name, publish_version(store, "3"), previous=second)
        await asyncio.to_thread(endpoint.reach, 3)

    tally = await under_load(endpoint.url, change)
    assert tally.is_clean, tally.failures
    assert set(tally.by_version) == {"1", "2", "3"}
    assert tally.total >= 200
    status = endpoint.status()
    assert (status["revision"], status["error"]) == (3, None)
    assert status["models"]["digits"]["previous"]["version"] == "2"
    until(lambda: not lives(old_pid), "the end of the worker that no revision names")


def test_from_nothing_to_a_model_and_back(store: Store, new_endpoint: Callable[[], Endpoint]):
    """Nothing rolled out is ready; the poll alone finds a revision and publishes it; one without models ends them."""
    endpoint = new_endpoint().start()
    until(lambda: endpoint.client.get("/readyz").status_code == 200, "readiness")
    assert endpoint.client.post(INFER, json=BODY).status_code == 404
    roll_out(store, endpoint.name, publish_version(store, "1"))
    until(lambda: endpoint.status()["revision"] == 1, "the poll")
    assert answering_version(endpoint) == "1"

    def published() -> bool:
        [info] = store.list(f"{store.root}/endpoints/{endpoint.name}/replicas")
        status = ReplicaStatus.model_validate_json(store.get(info.uri))
        return (status.revision, status.error, status.serving) == (1, None, {"digits": ["1"]})

    until(published, "the published status")
    pids = endpoint.worker_pids()
    propose_revision(store, endpoint.name, lambda _: {}, reason="removed", author="pytest")
    endpoint.reach(2)
    assert endpoint.client.post(INFER, json=BODY).status_code == 404
    assert endpoint.client.get("/readyz").status_code == 200
    until(lambda: not any(map(lives, pids)), "the end of the removed model's worker")


@pytest.fixture(scope="module")
def serving(store: Store, new_endpoint: Callable[[], Endpoint]) -> Endpoint:
    """An endpoint that serves version 1 and is offered worse."""
    endpoint = new_endpoint()
    roll_out(store, endpoint.name, publish_version(store, "1"))
    endpoint.start().reach(1)
    return endpoint


def offer(
    store: Store,
    endpoint: Endpoint,
    *,
    golden_shift: float = 0.0,
    is_signed: bool = True,
    harm: Callable[[Store, ServedVersion], object] | None = None,
) -> str:
    """Roll version 2 out with something wrong about it; returns the error of the status."""
    worse = publish_version(store, "2", golden_shift=golden_shift, is_signed=is_signed)
    if harm:
        harm(store, worse)
    number = roll_out(store, endpoint.name, worse).number
    pids = endpoint.worker_pids()
    status = endpoint.reach(number)
    assert answering_version(endpoint) == "1"
    assert endpoint.worker_pids() == pids, "what serves was touched"
    assert status["revision"] == 1
    assert endpoint.client.get("/readyz").status_code == 200
    return status["error"]


def test_a_golden_mismatch_is_refused(store: Store, serving: Endpoint):
    """A version that does not compute what was evaluated gets no request, and the status says why."""
    error = offer(store, serving, golden_shift=0.01)
    assert "digits version 2" in error
    assert "8 of 8 golden rows differ" in error


@pytest.mark.parametrize("name", ["model.onnx", "transform.json"])
def test_a_flipped_byte_in_the_bucket_is_refused_by_name(store: Store, serving: Endpoint, name: str):
    """Bytes that are not what the manifest says never reach a worker."""
    error = offer(store, serving, harm=lambda store, version: damage(store, version.artifact, name))
    assert name in error
    assert "sha256" in error


def alter_manifest(store: Store, ref: ArtifactRef) -> None:
    """Change what the digest does not cover: only the signature can tell."""
    uri = f"{ref.uri}/manifest.json"
    manifest = Manifest.model_validate_json(store.get(uri))
    forged = manifest.provenance.model_copy(update={"machine": "elsewhere"})
    altered = manifest.model_copy(update={"provenance": forged})
    assert altered.digest == ref.digest
    store.put(uri, altered.model_dump_json(indent=1).encode())


def sign_as_a_stranger(store: Store, version: ServedVersion, folder: Path) -> None:
    create_key(folder / "key.pem", folder / "trusted")
    for ref in (version.artifact, version.verdict):
        sign(store, ref, folder / "key.pem")


@pytest.mark.parametrize("part", ["artifact", "verdict"])
def test_an_unsigned_version_is_not_loaded(store: Store, serving: Endpoint, part: str):
    """Neither a package nor the golden rows that let it in are taken from whoever may write to the bucket."""

    def leave_one_out(store: Store, version: ServedVersion) -> None:
        other = {"artifact": version.verdict, "verdict": version.artifact}[part]
        sign(store, other, store._settings.signing_key_file)

    error = offer(store, serving, is_signed=False, harm=leave_one_out)
    assert {"artifact": "compressed@", "verdict": "verdict@"}[part] in error
    assert "is not loaded: it is unsigned" in error


def test_an_altered_or_wrongly_signed_version_is_not_loaded(store: Store, serving: Endpoint, tmp_path: Path):
    """The signature covers every byte of the manifest, and only a trusted key's counts."""
    error = offer(store, serving, harm=lambda store, version: alter_manifest(store, version.artifact))
    assert "it was altered since" in error
    error = offer(
        store, serving, is_signed=False, harm=lambda store, version: sign_as_a_stranger(store, version, tmp_path)
    )
    assert "which is not trusted" in error


def test_a_refused_revision_is_tried_again_on_notice_only(store: Store, serving: Endpoint):
    """A permanent error is not met in a loop; the next good revision is taken."""
    offer(store, serving, golden_shift=1.0)
    tries = serving.log.read_text().count("was not taken over")
    time.sleep(2.5)  # more than a poll
    assert serving.log.read_text().count("was not taken over") == tries
    serving.notify()
    until(lambda: serving.log.read_text().count("was not taken over") == tries + 1, "the second try")


def test_a_notice_may_name_a_revision(store: Store, serving: Endpoint):
    """One that is not there yet hides no other, one that is not the newest is not the last; no number is refused."""
    version = publish_version(store, "1")
    before = serving.status()["revision"]
    there = roll_out(store, serving.name, version)
    serving.notify(there.number + 50)
    until(lambda: serving.status()["revision"] == there.number > before, "the revision that is there")
    named, newest = roll_out(store, serving.name, version), roll_out(store, serving.name, version)
    assert named.number < newest.number
    serving.notify(named.number)
    until(lambda: serving.status()["revision"] == newest.number, "the newest revision")
    assert f"serving revision {named.number}:" in serving.log.read_text(), "the named one is read before any list"
    for word in ("x", "-1", "1" * 13, "٣"):
        answer = serving.client.post("/admin/notify", params={"revision": word})
        assert (answer.status_code, "is no number" in answer.json()["error"]) == (400, True), word


def test_a_difference_within_tolerance_is_served(store: Store, serving: Endpoint):
    """The tolerance is the verdict's own: a tenth of it passes, also right after a refusal."""
    good = roll_out(store, serving.name, publish_version(store, "1", golden_shift=0.0001))
    status = serving.reach(good.number)
    assert (status["revision"], status["error"]) == (good.number, None)


def test_a_start_falls_back_to_what_works(store: Store, new_endpoint: Callable[[], Endpoint]):
    """With nothing cached and the newest revision refused, the newest earlier one that works is served."""
    endpoint = new_endpoint()
    roll_out(store, endpoint.name, publish_version(store, "1"))
    roll_out(store, endpoint.name, publish_version(store, "2", golden_shift=1.0))
    endpoint.start().reach(2)
    until(lambda: endpoint.client.get("/readyz").status_code == 200, "readiness")
    status = endpoint.status()
    assert (status["revision"], status["attempted"]) == (1, 2)
    assert "golden" in status["error"]
    assert answering_version(endpoint) == "1"


async def test_weights_draw_roughly_per_weight(store: Store, serving: Endpoint):
    """Of n draws at weight p, the count lies within 5 standard deviations of the binomial."""
    versions = [publish_version(store, "1", weight=90), publish_version(store, "2", weight=10)]
    assert serving.reach(roll_out(store, serving.name, *versions).number)["error"] is None

    tally = await under_load(serving.url, lambda: asyncio.sleep(0.5))
    assert tally.is_clean, tally.failures
    assert tally.total >= 100
    expected, deviation = 0.1 * tally.total, (0.1 * 0.9 * tally.total) ** 0.5
    assert abs(tally.by_version["2"] - expected) < 5 * deviation
    pinned = serving.client.post("/v2/models/digits/versions/2/infer", json=BODY)
    assert pinned.headers["Modelyard-Model-Version"] == "2"


def test_weights_that_do_not_add_up_cannot_be_written(store: Store):
    """The document itself refuses them, before an endpoint sees it."""
    half = publish_version(store, "1", weight=50)
    with pytest.raises(ValueError, match="add up to 50"):
        ModelState(versions=[half])
