"""Which bytes a data set is made from."""

from __future__ import annotations

import hashlib

import pytest

from modelyard.catalog import Catalog
from modelyard.errors import DataError
from modelyard.preprocess import PreprocessConfig, preprocess, snapshot
from modelyard.preprocess.snapshot import read_snapshot
from tests.workbench import ORIGIN, blobs, csv_bytes, parquet_bytes, upload

FILES = {"a.parquet": parquet_bytes(blobs(200)), "deep/b.csv": csv_bytes(blobs(100, seed=1))}
CONFIG = PreprocessConfig(target="kind")


def test_it_names_every_byte(catalog: Catalog):
    """Relative names in order, sizes, sha256; what is neither Parquet nor CSV does not count."""
    uri = upload(catalog.store, FILES | {"_SUCCESS": b"", "README.md": b"hello"})
    product = snapshot(catalog, uri, ORIGIN)
    folder, sources = read_snapshot(catalog, product.ref)
    assert folder == uri
    assert [(source.name, source.size, source.sha256) for source in sources] == [
        (name, len(body), hashlib.sha256(body).hexdigest()) for name, body in sorted(FILES.items())
    ]
    assert product.manifest.content.facts == {"files": 2, "bytes": sum(map(len, FILES.values()))}


def test_an_unchanged_listing_is_not_read_again(catalog: Catalog):
    """The second look finds the first one's snapshot; a new file makes a new one."""
    uri = upload(catalog.store, FILES)
    first, second = snapshot(catalog, uri, ORIGIN), snapshot(catalog, uri, ORIGIN)
    assert second.reused
    assert second.ref == first.ref
    catalog.store.put(f"{uri}/c.csv", FILES["deep/b.csv"])
    third = snapshot(catalog, uri, ORIGIN)
    assert not third.reused
    assert third.ref.digest != first.ref.digest


def test_copies_have_one_digest_and_one_data_set(catalog: Catalog):
    """The same bytes under another folder are the same snapshot, and nothing is preprocessed twice."""
    here, there = (snapshot(catalog, upload(catalog.store, FILES), ORIGIN) for _ in range(2))
    assert here.ref.uri != there.ref.uri
    assert here.ref.digest == there.ref.digest
    made, found = (preprocess(catalog, product.ref, CONFIG, ORIGIN) for product in (here, there))
    assert found.reused
    assert found.ref == made.ref


@pytest.mark.parametrize(
    ("pattern", "names"), [("*.parquet", ["a.parquet"]), ("deep/b.csv", ["b.csv"]), ("deep", ["b.csv"])]
)
def test_a_uri_may_be_a_pattern_a_file_or_a_folder(catalog: Catalog, pattern: str, names: list[str]):
    """Names are relative to the folder before any wildcard."""
    uri = upload(catalog.store, FILES)
    _, sources = read_snapshot(catalog, snapshot(catalog, f"{uri}/{pattern}", ORIGIN).ref)
    assert [source.name for source in sources] == names


def test_nothing_there_is_an_error_with_the_uri(catalog: Catalog):
    """An empty folder, and one with files of other kinds."""
    with pytest.raises(DataError, match=r"nowhere/\*\.parquet: no file of a known format"):
        snapshot(catalog, f"{catalog.store.root}/nowhere/*.parquet", ORIGIN)
    with pytest.raises(DataError, match="1 other objects are"):
        snapshot(catalog, upload(catalog.store, {"data.json": b"{}"}), ORIGIN)


def test_a_changed_source_is_refused(catalog: Catalog):
    """What is preprocessed is what the snapshot says, or nothing."""
    uri = upload(catalog.store, FILES)
    ref = snapshot(catalog, uri, ORIGIN).ref
    catalog.store.put(f"{uri}/a.parquet", parquet_bytes(blobs(200, seed=9)))
    with pytest.raises(DataError, match=r"a\.parquet: changed since the snapshot"):
        preprocess(catalog, ref, CONFIG, ORIGIN)
    catalog.store.delete([f"{uri}/a.parquet"])
    with pytest.raises(DataError, match=r"a\.parquet: gone since the snapshot"):
        preprocess(catalog, ref, CONFIG, ORIGIN)
