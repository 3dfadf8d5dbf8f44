"""Batch prediction over real shards in the real store: right, resumable, and clear about bad input."""

from __future__ import annotations

import gzip
import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Attempt, Catalog, Origin, Work
from modelyard.errors import DataError, DigestMismatch, NotFound, StoreUnavailable
from modelyard.predict import PredictConfig, Predictions, predict
from modelyard.settings import Settings
from modelyard.storage import Store
from tests.serve.packages import COLUMNS, MIXED, ROWS, LinearModel, publish_version
from tests.workbench import ORIGIN, own_catalog, parquet_bytes, upload

CLASSES = np.array(["ant", "bee", "cat"])


@pytest.fixture(scope="module")
def package(store: Store) -> ArtifactRef:
    return publish_version(store, "3", is_signed=False).artifact


@pytest.fixture
def catalog(settings: Settings, store: Store) -> Catalog:
    return own_catalog(settings)


def frame(first: int, count: int) -> pd.DataFrame:
    rows = np.random.default_rng(first).normal(size=(count, len(COLUMNS)))
    return pd.DataFrame(rows, columns=COLUMNS).assign(id=range(first, first + count))


def dataset(catalog: Catalog, *shards: pd.DataFrame) -> ArtifactRef:
    def build(attempt: Attempt) -> None:
        for number, shard in enumerate(shards):
            attempt.add_bytes(f"test/{number:06d}.parquet", parquet_bytes(shard))

    return catalog.produce(Work(kind="dataset", config={}, inputs={}, code_version="test"), build, Origin()).ref


def answers(catalog: Catalog, done: Predictions) -> pd.DataFrame:
    parts = [f"{done.uri}/part-{number:06d}.parquet" for number in range(done.num_parts)]
    return pd.concat([pd.read_parquet(BytesIO(catalog.store.get(part))) for part in parts], ignore_index=True)


def expected(rows: pd.DataFrame) -> np.ndarray:
    return CLASSES[LinearModel(3).outputs(rows[COLUMNS].to_numpy()).argmax(axis=1)]


def run(catalog: Catalog, package: ArtifactRef, source: ArtifactRef | str, **config: object) -> Predictions:
    return predict(catalog, package, source, PredictConfig(**config), ORIGIN, model_name="digits")


def test_every_row_of_a_data_set_is_answered_once(catalog: Catalog, package: ArtifactRef):
    """In order, however rows are cut into batches, with what was to be kept; the manifest names package, source and runs."""
    shards = [frame(0, 50), frame(50, 7)]
    source = dataset(catalog, *shards)
    done = run(catalog, package, source, keep=["id"], batch_rows=8)
    table = answers(catalog, done)
    assert (done.num_rows, done.num_parts, done.num_reused) == (57, 2, 0)
    assert table["id"].tolist() == list(range(57))
    assert table["row"].tolist() == [*range(50), *range(7)]
    assert table["label"].tolist() == expected(pd.concat(shards)).tolist()
    manifest = json.loads(catalog.store.get(f"{done.uri}/manifest.json"))
    assert manifest["package"]["digest"] == package.digest
    assert manifest["source"]["digest"] == source.digest
    assert (manifest["commit"], manifest["flow_run_id"]) == ("abc", "flow")
    again = run(catalog, package, source, keep=["id"], batch_rows=1000)
    assert (again.uri, again.num_reused) == (done.uri, 2)


def test_raw_files_are_read_as_the_endpoint_reads_rows(catalog: Catalog, store: Store):
    """CSV, gzip, JSON Lines and Parquet side by side; texts that look like numbers stay texts, gaps are filled in."""
    mixed = publish_version(store, "2", transform=MIXED, is_signed=False).artifact
    rows = pd.DataFrame({"colour": ["red", "blue", "007"], "size": [1.5, None, 3.0], "weight": [1, 2, 3]})
    files = {
        "a.csv": rows.to_csv(index=False).encode(),
        "b.csv.gz": gzip.compress(rows.to_csv(index=False).encode()),
        "c.jsonl": rows.to_json(orient="records", lines=True).encode(),
        "d.parquet": parquet_bytes(rows),
    }
    done = run(catalog, mixed, upload(catalog.store, files))
    one = LinearModel(2).outputs(MIXED.rows({name: rows[name].tolist() for name in rows}), MIXED).argmax(axis=1)
    assert answers(catalog, done)["label"].tolist() == CLASSES[np.tile(one, 4)].tolist()


def test_a_run_that_broke_off_goes_on(catalog: Catalog, package: ArtifactRef, monkeypatch: pytest.MonkeyPatch):
    """What was done before the store went away is not done again, and the whole is as if nothing had happened."""
    shards = [frame(number * 10, 10) for number in range(4)]
    source, plain_upload = dataset(catalog, *shards), Store.upload

    def broken_upload(store: Store, path: Path, uri: str) -> None:
        if uri.endswith("part-000002.parquet"):
            raise StoreUnavailable("the store went away")
        plain_upload(store, path, uri)

    monkeypatch.setattr(Store, "upload", broken_upload)
    with pytest.raises(StoreUnavailable):
        run(catalog, package, source, keep=["id"])
    monkeypatch.undo()
    done = run(catalog, package, source, keep=["id"])
    assert (done.num_parts, done.num_reused) == (4, 2)
    assert answers(catalog, done)["id"].tolist() == list(range(40))


def test_bad_input_is_named(catalog: Catalog, package: ArtifactRef, store: Store):
    """Nothing there, a foreign or torn file, a missing column, an unknown form or split, no package: a sentence each."""
    rows = frame(0, 5)
    cases: list[tuple[dict[str, bytes], dict[str, object], str]] = [
        ({}, {}, "there is nothing to predict"),
        ({"rows.xlsx": b"PK"}, {}, r"rows\.xlsx: rows are read from \.parquet, \.csv"),
        ({"torn.parquet": parquet_bytes(rows)[:-20]}, {}, r"torn\.parquet: cannot be read"),
        ({"torn.csv.gz": gzip.compress(rows.to_csv().encode())[:-9]}, {}, r"torn\.csv\.gz: cannot be read"),
        ({"narrow.parquet": parquet_bytes(rows.drop(columns="feature_1"))}, {}, "columns are missing: feature_1"),
        ({"rows.parquet": parquet_bytes(rows)}, {"keep": ["name"]}, "has no column name to keep"),
    ]
    for files, config, words in cases:
        with pytest.raises(DataError, match=words):
            run(catalog, package, upload(catalog.store, files), **config)
    with pytest.raises(NotFound, match="has no form 'float'"):
        run(catalog, package, dataset(catalog, rows), form="float")
    with pytest.raises(DataError, match="no files of the split 'train'"):
        run(catalog, package, dataset(catalog, rows), split="train")
    with pytest.raises(DataError, match="made by a package"):
        run(catalog, dataset(catalog, rows), "s3://bucket/rows")


def test_an_altered_shard_is_not_answered(catalog: Catalog, package: ArtifactRef):
    """A data set's file that is not what its manifest says stops the run, by its name."""
    source = dataset(catalog, frame(0, 5))
    manifest = catalog.manifest(source)
    uri = f"{source.uri}/{manifest.file_path('test/000000.parquet')}"
    catalog.store.put(uri, parquet_bytes(frame(1, 5)))
    with pytest.raises(DigestMismatch, match=r"000000\.parquet"):
        run(catalog, package, source)


def test_golden_rows_are_answered_as_by_the_endpoint(catalog: Catalog, package: ArtifactRef):
    """The probability beside the label is that of the label."""
    source = dataset(catalog, pd.DataFrame(ROWS, columns=COLUMNS))
    table = answers(catalog, run(catalog, package, source))
    outputs = LinearModel(3).outputs(ROWS)
    likely = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    np.testing.assert_allclose(
        table["probability"], (likely / likely.sum(axis=1, keepdims=True)).max(axis=1), atol=1e-5
    )
