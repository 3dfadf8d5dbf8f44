"""Data that nobody prepared for us: public sets that lie inside installed packages."""

from __future__ import annotations

import gzip
import json
from importlib.resources import files
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn import datasets

from modelyard.catalog import Catalog, Product
from modelyard.datasets import SPLITS, Dataset
from modelyard.preprocess import PreprocessConfig, preprocess, snapshot
from tests.workbench import ORIGIN, csv_bytes, parquet_bytes, upload

TITANIC = "tests/data/openml/id_40945/data-v1-dl-16826755.arff.gz"
TITANIC_CONFIG: dict[str, Any] = {
    "target": "survived",
    "features": ["pclass", "sex", "age", "fare", "embarked", "home.dest"],
    "columns": {
        "name": {"sensitive": "drop"},
        "age": {"nulls": "median", "range": [0, 120]},
        "fare": {"nulls": "mean", "outliers": {"method": "iqr", "limit": 10, "action": "clip"}},
        "pclass": {"type": "category"},
        "sex": {"type": "category", "values": ["female", "male"]},
        "embarked": {"type": "category", "nulls": "most_frequent"},
        "home.dest": {"type": "category", "nulls": "value", "fill": "unknown", "text": ["nfc", "whitespace", "lower"]},
        "ticket": {"nulls": "reject"},
    },
    "keep": ["ticket"],
    "split": {"method": "stratified"},
    "read": {"nulls": ["?"]},
}


def run(catalog: Catalog, body: dict[str, bytes], **fields: Any) -> Product:
    config = PreprocessConfig.model_validate(fields)
    return preprocess(catalog, snapshot(catalog, upload(catalog.store, body), ORIGIN).ref, config, ORIGIN)


def titanic() -> bytes:
    """The passengers of the Titanic as CSV: 1,309 rows, question marks for what is not known."""
    text = gzip.decompress(files("sklearn.datasets").joinpath(TITANIC).read_bytes()).decode()
    head, _, rows = text.partition("@data")
    names = [line.split("'")[1] for line in head.splitlines() if line.startswith("@attribute")]
    return (",".join(names) + rows.replace("\r\n", "\n")).encode()


@pytest.mark.parametrize("name", ["iris", "wine", "breast_cancer", "digits"])
def test_sets_of_numbers(catalog: Catalog, tmp_path: Path, name: str):
    """Every row is accounted for: what pandas finds to be duplicates, nothing else, goes."""
    loaded = getattr(datasets, f"load_{name}")(as_frame=True).frame
    product = run(catalog, {f"{name}.csv": csv_bytes(loaded)}, target="target")
    facts = product.manifest.content.facts
    assert facts["read"] == len(loaded)
    assert facts["rejected"] == 0
    assert facts["duplicates"] == loaded.duplicated().sum()
    dataset = Dataset.fetch(catalog, product.ref, tmp_path, SPLITS)
    inputs, _ = dataset.load("train")
    varied = inputs.std(axis=0) > 0
    np.testing.assert_allclose(inputs.std(axis=0)[varied], 1, rtol=1e-3)


def test_a_regression_set_as_classes_of_its_quartiles(catalog: Catalog):
    """Diabetes, its target cut in four."""
    frame = datasets.load_diabetes(as_frame=True, scaled=False).frame
    frame["target"] = pd.qcut(frame["target"], 4, labels=["a", "b", "c", "d"]).astype(str)
    facts = run(catalog, {"d.parquet": parquet_bytes(frame)}, target="target").manifest.content.facts
    assert facts["read"] == facts["kept"] == 442


def test_the_titanic_with_its_gaps(catalog: Catalog, tmp_path: Path):
    """Missing ages, fares, ports and homes are filled from the training rows; no name gets into the artifact."""
    product = run(catalog, {"titanic.csv": titanic()}, **TITANIC_CONFIG)
    facts = product.manifest.content.facts
    assert (facts["read"], facts["rejected"]) == (1309, 0)
    dataset = Dataset.fetch(catalog, product.ref, tmp_path, SPLITS)
    train = pd.concat(dataset.frames("train"))
    assert train["age"].isna().sum() > 150
    assert not any("Allen" in path.read_text(errors="ignore") for path in tmp_path.rglob("*.json"))
    inputs, _ = dataset.load("test")
    assert np.isfinite(inputs).all()
    raw = pd.read_csv(StringIO(titanic().decode()), na_values="?")[:3].to_dict("list")
    assert np.isfinite(dataset.transform.apply_columns(raw)).all()  # as a client would send them


def test_the_titanic_shrunk(catalog: Catalog, tmp_path: Path):
    """With selection and extraction the model's input is as narrow as asked for, the same for either file format."""
    frame = pd.read_csv(StringIO(titanic().decode()), na_values="?")
    bodies = {"t.csv": titanic()}, {"t.jsonl": "".join(_lines(frame)).encode()}
    transform = {"select": {"variance": 0.001, "mutual_information": 12}, "components": 4, "categories": "one_hot"}
    products = [run(catalog, body, **TITANIC_CONFIG | {"transform": transform}) for body in bodies]
    files_of = [product.manifest.content.files for product in products]
    assert files_of[0]["transform.json"] == files_of[1]["transform.json"]
    dataset = Dataset.fetch(catalog, products[0].ref, tmp_path, SPLITS)
    inputs, targets = dataset.load("train")
    assert inputs.shape == (len(targets), 4)
    assert len(dataset.transform.selected or []) == 12
    buckets = {"categories": "hashing", "hash_buckets": 8}
    hashed = run(catalog, bodies[0], **TITANIC_CONFIG | {"transform": buckets})
    assert json.loads(catalog.read(hashed.ref, "transform.json"))["features"][1]["buckets"] == 8


def _lines(frame: pd.DataFrame) -> list[str]:
    rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return [json.dumps(row, default=str) + "\n" for row in rows]
