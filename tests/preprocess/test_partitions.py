"""A data set that grows is made of its new files, and is the same as if all had been made at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from commands.environment import PROJECT
from modelyard.catalog import Catalog, Product
from modelyard.datasets import SPLITS, Dataset
from modelyard.preprocess import PreprocessConfig, preprocess, snapshot
from modelyard.preprocess.partitions import partitions
from modelyard.preprocess.snapshot import Source
from modelyard.settings import Settings
from modelyard.storage import Store
from tests.workbench import ORIGIN, PROPERTY, blobs, csv_bytes, own_catalog, parquet_bytes, upload

EACH_FILE: dict[str, Any] = {"target": "kind", "partition_bytes": 1, "shard_rows": 90}
CONFIGS: dict[str, dict[str, Any]] = {
    "by hash": {"columns": {"b": {"nulls": "median"}}},
    "stratified": {"split": {"method": "stratified"}},
    "everything": {
        "identity": ["who"],
        "keep": ["number"],
        "split": {"disjoint": ["who"]},
        "columns": {
            "a": {"outliers": {"limit": 1.0}},
            "number": {"unique": True},
            "city": {"type": "category", "nulls": "most_frequent"},
        },
        "transform": {"select": {"variance": 0}, "components": 2},
        "max_rejected_fraction": 0.4,
    },
}


def rows(seed: int) -> pd.DataFrame:
    """A file of 120 rows; each shares some with the file before it, and some numbers with another one."""
    frame = pd.concat([blobs(100, seed), blobs(100, seed - 1)[:20] if seed else blobs(20, 99)], ignore_index=True)
    return frame.assign(
        who=[f"p{value:.1f}" for value in frame["a"]],
        number=(frame["a"] * 1000).round().astype(int) % 5000,
        city=frame["b"].gt(3).map({True: "Lima", False: "Oslo"}),
    )


FILES = {f"{number}.csv": csv_bytes(rows(number)) for number in range(5)}
# Before: one in the middle is not there yet, another one is different, one more is at the end.
BEFORE = {name: body for name, body in FILES.items() if name != "2.csv"}
BEFORE |= {"1.csv": csv_bytes(rows(11)), "5.csv": csv_bytes(rows(5))}


def run(catalog: Catalog, files: Mapping[str, bytes], config: PreprocessConfig) -> Product:
    return preprocess(catalog, snapshot(catalog, upload(catalog.store, files), ORIGIN).ref, config, ORIGIN)


# All rules at once in every run; each way to split by itself in the long one.
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "everything" else pytest.mark.soak) for name in CONFIGS]
)
def test_a_grown_data_set_is_the_same_as_one_made_at_once(catalog: Catalog, settings: Settings, name: str):
    """A file added in the middle, one changed, one removed: the digest of a catalog that knew nothing, and only what
    is new was read."""
    config = PreprocessConfig.model_validate(EACH_FILE | CONFIGS[name])
    run(catalog, BEFORE, config)
    grown, fresh = run(catalog, FILES, config), run(own_catalog(settings), FILES, config)
    assert grown.manifest.provenance.measurements == {"partitions": 5, "partitions_found": 3}
    assert fresh.manifest.provenance.measurements == {"partitions": 5, "partitions_found": 0}
    assert grown.ref.digest == fresh.ref.digest


@pytest.mark.parametrize("name", ["stratified", pytest.param("everything", marks=pytest.mark.soak)])
def test_partitions_change_no_row(catalog: Catalog, tmp_path: Path, name: str):
    """A file a partition or all in one: the same rows in the same splits in the same order."""
    found = {}
    for size in (1, 10**9):
        config = PreprocessConfig.model_validate(EACH_FILE | CONFIGS[name] | {"partition_bytes": size})
        product = run(catalog, FILES, config)
        dataset = Dataset.fetch(catalog, product.ref, tmp_path / str(size), SPLITS)
        found[size] = [pd.concat(dataset.frames(split), ignore_index=True) for split in SPLITS]
        facts = product.manifest.content.facts
        assert facts["duplicates"] >= 60
        assert facts["read"] == facts["kept"] + facts["rejected"] + facts["duplicates"] == 600
    for one, other in zip(*found.values(), strict=True):
        pd.testing.assert_frame_equal(one, other)


def test_a_file_with_nothing_but_faults_counts(catalog: Catalog):
    """Before the first row that decides the schema, too: each of its lines is a refused row."""
    config = PreprocessConfig.model_validate(EACH_FILE | {"max_rejected_fraction": 0.1})
    header = b"a,b,kind\n"
    product = run(catalog, {"0.csv": header + b"1,2\n", "1.csv": csv_bytes(blobs(200)), "2.csv": header}, config)
    assert {name: product.manifest.content.facts[name] for name in ("read", "rejected")} == {"read": 201, "rejected": 1}


def test_another_transform_reads_no_file_again(catalog: Catalog):
    """What comes after the rows is worked out from what partitions keep."""
    config = PreprocessConfig.model_validate(EACH_FILE)
    run(catalog, FILES, config)
    other = run(catalog, FILES, PreprocessConfig.model_validate(EACH_FILE | {"transform": {"scaling": "minmax"}}))
    assert not other.reused
    assert other.manifest.provenance.measurements["partitions_found"] == 5


MAKE = """
import sys
from modelyard.preprocess import PreprocessConfig, preprocess, snapshot
from modelyard.settings import load_settings
from tests.workbench import ORIGIN, OwnStore
from modelyard.catalog import Catalog
store = OwnStore(load_settings())
store._folder = sys.argv[1]
catalog = Catalog(store)
config = PreprocessConfig.model_validate_json(sys.argv[3])
print(preprocess(catalog, snapshot(catalog, sys.argv[2], ORIGIN).ref, config, ORIGIN).ref.digest)
"""


def test_a_killed_run_goes_on_from_its_finished_partitions(catalog: Catalog, settings: Settings):
    """kill -9 in the middle of a partition: those before are found, and the digest is that of an undisturbed run."""
    big = {f"{number}.csv": csv_bytes(blobs(12_000, number)) for number in range(4)}
    uri = upload(catalog.store, big)
    config = PreprocessConfig.model_validate(EACH_FILE | {"shard_rows": 500})
    folder = catalog.store.root.removeprefix(Store(settings).root + "/")
    process = subprocess.Popen(
        [sys.executable, "-c", MAKE, folder, uri, config.model_dump_json()], env=os.environ, cwd=PROJECT
    )
    committed = f"{catalog.store.root}/artifacts/partition"
    try:
        deadline = time.monotonic() + 120
        while not any(info.uri.endswith("manifest.json") for info in catalog.store.list(committed)):
            assert time.monotonic() < deadline
            assert process.poll() is None
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    product = preprocess(catalog, snapshot(catalog, uri, ORIGIN).ref, config, ORIGIN)
    assert not product.reused
    assert 1 <= product.manifest.provenance.measurements["partitions_found"] < 4
    undisturbed = run(own_catalog(settings), big, config)
    assert product.ref.digest == undisturbed.ref.digest


@PROPERTY
@given(sizes=st.lists(st.integers(0, 300), min_size=1, max_size=60), at=st.integers(0, 60), size=st.integers(0, 300))
def test_a_new_file_moves_the_borders_of_its_own_group_only(sizes: list[int], at: int, size: int):
    """All files in order, large ones alone, and at most two groups gone for one file more."""
    sources = [source(number, size) for number, size in enumerate(sizes)]
    before = partitions(sources, 100)
    assert [file for group in before for file in group.sources] == sources
    assert all(len(group.sources) == 1 or all(file.size < 100 for file in group.sources) for group in before)
    after = partitions([*sources[:at], source(99, size), *sources[at:]], 100)
    assert len([group for group in before if group not in after]) <= 1


def source(number: int, size: int) -> Source:
    digest = np.random.default_rng(number).bytes(32).hex()
    return Source(name=f"{number:03d}", size=size, sha256=digest)


def test_small_files_share_partitions_of_about_the_wanted_size():
    """A thousand files of a tenth: about a hundred partitions."""
    assert 70 <= len(partitions([source(number, 10) for number in range(1000)], 100)) <= 130


def test_only_new_files_are_read_for_a_snapshot(catalog: Catalog, monkeypatch: pytest.MonkeyPatch):
    """The store is asked for the bytes of what was added, and of nothing else."""
    uri = upload(catalog.store, {"1.parquet": parquet_bytes(blobs(50)), "2.parquet": parquet_bytes(blobs(60))})
    snapshot(catalog, uri, ORIGIN)
    catalog.store.put(f"{uri}/3.parquet", parquet_bytes(blobs(70)))
    asked: list[str] = []
    stream = catalog.store.get_stream
    monkeypatch.setattr(catalog.store, "get_stream", lambda uri, etag: asked.append(uri) or stream(uri, etag))
    snapshot(catalog, uri, ORIGIN)
    assert asked == [f"{uri}/3.parquet"]
