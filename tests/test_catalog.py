"""Commit, race, damage: artifacts in the real store."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Attempt, Catalog, Origin, Product, Work
from modelyard.errors import DataError, DigestMismatch, NotFound, StoreUnavailable
from modelyard.settings import Settings
from modelyard.storage import Store
from tests.workbench import ORIGIN, OwnStore, own_catalog

WORK = Work(kind="dataset", config={"rows": 3}, inputs={}, code_version="c")


@pytest.fixture
def catalog(store: Store, settings: Settings) -> Catalog:
    del store  # it runs
    return own_catalog(settings)


def build(attempt: Attempt) -> None:
    attempt.add_bytes("train/000000.parquet", b"rows")
    attempt.add_json("report.json", {"rows": 3})
    attempt.facts["rows"] = 3


def failing(attempt: Attempt) -> None:
    build(attempt)
    raise DataError("half way")


def must_not_run(attempt: Attempt) -> None:
    raise AssertionError("built again")


def below(catalog: Catalog, uri: str) -> list[str]:
    return [info.uri.removeprefix(f"{uri}/") for info in catalog.store.list(uri)]


def folder_of(catalog: Catalog, work: Work) -> str:
    return catalog.folder(work.kind, work.key)


def test_half_an_artifact_is_invisible(catalog: Catalog):
    """A build that raises leaves no manifest and no file, and its own error comes through."""
    with pytest.raises(DataError, match="half way"):
        catalog.produce(WORK, failing, ORIGIN)
    assert catalog.find(WORK.kind, WORK.key) is None
    assert below(catalog, folder_of(catalog, WORK)) == []


def test_found_again_is_not_built_again(catalog: Catalog):
    """The second call returns what the first committed."""
    first = catalog.produce(WORK, build, ORIGIN)
    second = catalog.produce(WORK, must_not_run, Origin(flow_run_id="another"))
    assert (first.reused, second.reused) == (False, True)
    assert second.ref == first.ref
    assert second.manifest.provenance.flow_run_id == "flow"


def test_the_same_work_elsewhere_has_the_same_digest(catalog: Catalog, settings: Settings):
    """Another bucket folder, attempt and time: other provenance, same artifact."""
    here, there = catalog.produce(WORK, build, ORIGIN), own_catalog(settings).produce(WORK, build, Origin())
    assert here.ref.uri != there.ref.uri
    assert here.ref.digest == there.ref.digest
    assert here.manifest.provenance != there.manifest.provenance


def test_other_content_has_another_digest(catalog: Catalog):
    """One byte more and it is another artifact, at another key only if the work is another."""
    first = catalog.produce(WORK, build, ORIGIN)

    def build_more(attempt: Attempt) -> None:
        build(attempt)
        attempt.add_bytes("more", b"!")

    other = Work(kind="dataset", config={"rows": 4}, inputs={"source": first.ref}, code_version="c")
    second = catalog.produce(other, build_more, ORIGIN)
    assert second.ref.digest != first.ref.digest
    assert second.manifest.content.inputs == {"source": first.ref.digest}
    assert second.manifest.provenance.input_uris == {"source": first.ref.uri}


def test_the_occasion_names_work_but_is_no_part_of_it(catalog: Catalog):
    """A snapshot of another listing is other work; if the bytes are the same, so is the digest."""
    listings = [Work(kind="snapshot", config={}, inputs={}, code_version="c", occasion={"etag": tag}) for tag in "ab"]
    one, other = (catalog.produce(work, build, ORIGIN) for work in listings)
    assert one.ref.uri != other.ref.uri
    assert one.ref.digest == other.ref.digest


def test_racers_agree_on_one_winner(catalog: Catalog):
    """All return the artifact that was committed first; of the losers no file is left."""
    racers = 6
    start = threading.Barrier(racers, timeout=30)

    def racing(attempt: Attempt) -> None:
        build(attempt)
        attempt.add_bytes("who", attempt.attempt_id.encode())  # racers whose results differ must still agree
        start.wait()

    with ThreadPoolExecutor(racers) as pool:
        products = list(pool.map(lambda _: catalog.produce(WORK, racing, ORIGIN), range(racers)))
    assert len({product.ref.digest for product in products}) == 1
    assert [product.reused for product in products].count(False) == 1
    winner = products[0].manifest.provenance.attempt_id
    names = below(catalog, products[0].ref.uri)
    assert {name.split("/")[1] for name in names if name.startswith("attempts/")} == {winner}
    assert catalog.read(products[0].ref, "who").decode() == winner


class LosesReplies(OwnStore):
    """A store whose answer to the commit gets lost on the way, after the commit was done."""

    def __init__(self, settings: Settings, answer: Callable[[], bool]) -> None:
        super().__init__(settings)
        self.answer = answer

    def put_new(self, uri: str, body: bytes) -> bool:
        created = super().put_new(uri, body)
        return self.answer() if uri.endswith("manifest.json") else created


def exists_already() -> bool:
    return False


def unavailable() -> bool:
    raise StoreUnavailable("timed out")


def test_a_lost_reply_is_success(store: Store, settings: Settings):
    """The client's own retry is told "exists already"; the attempt id in the manifest says that it won."""
    catalog = Catalog(LosesReplies(settings, exists_already))
    product = catalog.produce(WORK, build, ORIGIN)
    assert not product.reused
    assert catalog.read(product.ref, "train/000000.parquet") == b"rows"


def test_a_commit_without_an_answer_keeps_its_files(store: Store, settings: Settings):
    """Nobody knows whether it was committed, so nothing is deleted, and the next try finds it whole."""
    shelf = LosesReplies(settings, unavailable)
    catalog = Catalog(shelf)
    with pytest.raises(StoreUnavailable):
        catalog.produce(WORK, build, ORIGIN)
    product = catalog.produce(WORK, must_not_run, ORIGIN)
    assert product.reused
    assert catalog.read(product.ref, "report.json")
    assert catalog.resolve(product.ref.digest) == product.ref


def flip_a_byte(catalog: Catalog, product: Product, name: str) -> None:
    uri = f"{product.ref.uri}/{product.manifest.file_path(name)}"
    body = bytearray(catalog.store.get(uri))
    body[0] ^= 1
    catalog.store.put(uri, bytes(body))


def test_a_flipped_byte_is_refused_by_name(catalog: Catalog, tmp_path: Path):
    """Neither way of reading hands out damaged bytes; the file is named and does not stay."""
    product = catalog.produce(WORK, build, ORIGIN)
    flip_a_byte(catalog, product, "train/000000.parquet")
    with pytest.raises(DigestMismatch, match=r"train/000000\.parquet"):
        catalog.read(product.ref, "train/000000.parquet")
    with pytest.raises(DigestMismatch, match=r"train/000000\.parquet"):
        catalog.fetch(product.ref, tmp_path)
    assert not (tmp_path / "train" / "000000.parquet").exists()
    assert catalog.read(product.ref, "report.json")


def test_a_replaced_manifest_is_refused(catalog: Catalog):
    """A reference names a digest: another manifest in its place is not what was meant, nor is a torn one."""
    product = catalog.produce(WORK, build, ORIGIN)
    uri = f"{product.ref.uri}/manifest.json"
    catalog.store.put(uri, catalog.store.get(uri).replace(b'"rows": 3', b'"rows": 4').replace(b'"rows":3', b'"rows":4'))
    with pytest.raises(DigestMismatch, match="manifest"):
        catalog.manifest(product.ref)
    catalog.store.put(uri, b"{")
    with pytest.raises(DigestMismatch, match="readable manifest"):
        catalog.manifest(product.ref)


def test_fetch_brings_the_named_files(catalog: Catalog, tmp_path: Path):
    """All files, or only those asked for; a name that is not there is an error that lists the others."""
    ref = catalog.produce(WORK, build, ORIGIN).ref
    catalog.fetch(ref, tmp_path / "some", ["report.json"])
    catalog.fetch(ref, tmp_path / "all")
    assert [path.name for path in (tmp_path / "some").rglob("*.*")] == ["report.json"]
    assert (tmp_path / "all" / "train" / "000000.parquet").read_bytes() == b"rows"
    with pytest.raises(NotFound, match=r"report\.json"):
        catalog.read(ref, "weights")


def test_artifacts_are_found_by_digest_and_uri(catalog: Catalog):
    """The start of a digest will do while it is unambiguous."""
    ref = catalog.produce(WORK, build, ORIGIN).ref
    other = catalog.produce(Work(kind="model", config={}, inputs={}, code_version="c"), build, ORIGIN).ref
    for name in (ref.digest, ref.digest[:10], ref.uri, f"{ref.uri}/"):
        assert catalog.resolve(name) == ref
    shared = "" if ref.digest[0] != other.digest[0] else ref.digest[0]
    with pytest.raises(NotFound, match="matches 2"):
        catalog.resolve(shared)
    with pytest.raises(NotFound, match="matches no artifact"):
        catalog.resolve("f" * 64)


def test_a_reference_to_nothing_is_not_found(catalog: Catalog):
    """The URI is in the sentence."""
    nowhere = ArtifactRef(uri=f"{catalog.store.root}/artifacts/model/none", digest="0" * 64, kind="model")
    with pytest.raises(NotFound, match="artifacts/model/none"):
        catalog.manifest(nowhere)
