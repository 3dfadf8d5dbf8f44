"""From clicks to an endpoint: two towers trained on two ranks, packed, judged against a champion, asked for vectors."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Catalog, Origin, Product
from modelyard.compress import CompressConfig, DynamicInt8, MeasureConfig, SearchConfig, compress
from modelyard.datasets import Dataset
from modelyard.errors import ConfigError, DataError
from modelyard.evaluate import EvaluateConfig, evaluate, refusal
from modelyard.model_package import ModelPackage
from modelyard.models import RecommenderConfig
from modelyard.predict import PredictConfig, predict
from modelyard.revisions import ServedVersion
from modelyard.settings import Settings
from modelyard.signing.sign import sign_release
from modelyard.storage import Store
from modelyard.train import OptimizerConfig, TrainConfig, train
from tests.clickbench import click_dataset, clicks
from tests.serve.inprocess import endpoint
from tests.workbench import parquet_bytes, upload

pytestmark = pytest.mark.soak  # tests/evaluate/test_items.py judges vectors that are known

SMALL = CompressConfig(
    techniques=[DynamicInt8()], default_form="int8-dynamic", measure=MeasureConfig(repeats=2, batches=[1])
)
BOUNDS = EvaluateConfig(metric="recall_at_10", floor=0.25, allowed_drop_against_float=0.1, resamples=400)


def training(**changes: object) -> TrainConfig:
    model = RecommenderConfig(kind="recommender", vector_width=16, embedding_width=16)
    rate = OptimizerConfig(learning_rate=0.01)
    return TrainConfig.model_validate(
        {"model": model, "optimizer": rate, "batch_size": 128, "max_epochs": 12, "ranks": 2, **changes}
    )


@dataclass(frozen=True, kw_only=True)
class Shop:
    catalog: Catalog
    dataset: ArtifactRef
    model: Product
    package: ArtifactRef
    beginner: ArtifactRef
    folder: Path


@pytest.fixture(scope="module")
def shop(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    catalog, folder = Catalog(store), tmp_path_factory.mktemp("shop")
    dataset = click_dataset(catalog, clicks(4000, num_users=120, num_items=150), weight="times")
    model = train(catalog, dataset, training(), Origin())
    beginner = train(catalog, dataset, training(max_epochs=1, seed=1), Origin())
    packages = [compress(catalog, one.ref, dataset, SMALL, Origin()).ref for one in (model, beginner)]
    catalog.fetch(packages[0], folder / "package")
    return Shop(
        catalog=catalog, dataset=dataset, model=model, package=packages[0], beginner=packages[1], folder=folder
    )  # fmt: skip


def test_it_learns_what_people_like(shop: Shop):
    """On items of 150, better than the most popular ten would be; the model says how wide its vectors are."""
    facts = shop.model.manifest.content.facts
    rows = pd.concat(
        Dataset.fetch(shop.catalog, shop.dataset, shop.folder / "rows", ["train", "validation"]).frames("train")
    )
    popular = rows["item"].value_counts().index[:10]
    validation = pd.concat(Dataset(shop.folder / "rows").frames("validation"))
    assert facts["metrics"]["recall_at_10"] > validation["item"].isin(popular).mean() + 0.05
    assert json.loads(shop.catalog.read(shop.model.ref, "target.json"))["width"] == 16
    with pytest.raises(ConfigError, match="a package for retrieval holds two"):
        compress(shop.catalog, shop.model.ref, shop.dataset, CompressConfig(search=SearchConfig()), Origin())


def test_a_champion_is_compared_query_by_query(shop: Shop):
    """The trained one is better than a beginner by a probability; the beginner is refused against it. A champion for another
    question, one that is gone and one that was altered are a sentence each in a verdict that refuses."""
    catalog, dataset = shop.catalog, shop.dataset
    bounds = BOUNDS.model_copy(update={"probability_better": 0.95, "slices": ("genre",)})
    better = evaluate(catalog, shop.package, dataset, shop.beginner, bounds, Origin())
    assert refusal(better.manifest) is None, refusal(better.manifest)
    document = json.loads(catalog.read(better.ref, "verdict.json"))
    assert document["comparison"]["difference"]["low"] > 0
    assert "genre = g1" in catalog.read(better.ref, "report.html").decode()
    worse = evaluate(catalog, shop.beginner, dataset, shop.package, bounds.model_copy(update={"floor": 0.0}), Origin())
    assert any("champion" in reason for reason in refusal(worse.manifest).reasons)
    for champion, words in _broken(shop):
        found = refusal(evaluate(catalog, shop.package, dataset, champion, BOUNDS, Origin()).manifest)
        (reason,) = found.reasons
        assert words in reason


def _broken(shop: Shop) -> list[tuple[ArtifactRef, str]]:
    """Champions that cannot be judged, and what is said of each."""
    catalog = shop.catalog
    frame = clicks(900).rename(columns={"item": "film"})
    other = click_dataset(catalog, frame, target="film")
    foreign = compress(catalog, train(catalog, other, training(max_epochs=1), Origin()).ref, other, SMALL, Origin()).ref
    copies = []
    for repeats in (3, 4):
        config = SMALL.model_copy(update={"measure": MeasureConfig(repeats=repeats, batches=[1])})
        copies.append(compress(catalog, shop.model.ref, shop.dataset, config, Origin()))
    gone, altered = copies
    for product, body in ((gone, None), (altered, b"else")):
        uri = product.manifest.file_uri(product.ref.uri, "items.onnx")
        if body is None:
            catalog.store.delete([uri])
        else:
            catalog.store.put(uri, body)
    return [(foreign, "it predicts which 'film'"), (gone.ref, "items.onnx"), (altered.ref, "items.onnx")]


def test_items_are_published_for_an_index(shop: Shop):
    """Every item of the data set once, with its vector, as Parquet; of a file of items each row, new ones too; a second run
    finds them. The nearest by the dot product are what evaluation ranks. A model without items is told so."""
    catalog, config = shop.catalog, PredictConfig(items=True, keep=["genre"])
    made = predict(catalog, shop.package, shop.dataset, config, Origin(), model_name="shop")
    again = predict(catalog, shop.package, shop.dataset, config, Origin(), model_name="shop")
    assert (made.uri, made.num_parts, again.num_reused) == (again.uri, 1, 1)
    (shop.folder / "items.parquet").write_bytes(catalog.store.get(f"{made.uri}/part-000000.parquet"))
    index = pd.read_parquet(shop.folder / "items.parquet")
    assert index["item"].is_unique
    assert list(index.columns) == ["item", "genre", "embedding"]
    vectors = np.stack(list(index["embedding"]))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-4)
    package = ModelPackage.open(shop.folder / "package")
    frame = pd.concat(Dataset.fetch(catalog, shop.dataset, shop.folder / "test", ["test"]).frames("test"))
    queries = np.stack(list(package.predict(frame)["embedding"]))
    nearest = np.argsort(-queries @ vectors.T, axis=1)[:, :10]
    found = (index["item"].to_numpy()[nearest] == frame["item"].to_numpy()[:, None]).any(axis=1).mean()
    verdict = evaluate(catalog, shop.package, shop.dataset, None, BOUNDS, Origin())
    assert found == pytest.approx(verdict.manifest.content.facts["metrics"]["candidate"]["recall_at_10"], abs=0.02)
    fresh = pd.DataFrame({"item": ["i001", "new"], "genre": ["g1", "g2"], "price": [3.0, 4.0]})
    folder = upload(catalog.store, {"items.parquet": parquet_bytes(fresh)})
    of_files = predict(
        catalog, shop.package, f"{folder}/*.parquet", PredictConfig(items=True), Origin(), model_name="shop"
    )
    assert of_files.num_rows == 2


async def test_the_endpoint_answers_queries_with_vectors(shop: Shop, settings: Settings, store: Store, tmp_path: Path):
    """Raw rows of a query, a user nobody knows among them, to the package's own vectors."""
    verdict = evaluate(shop.catalog, shop.package, shop.dataset, None, BOUNDS, Origin()).ref
    sign_release(store, settings, shop.package, verdict)
    version = ServedVersion(version="1", artifact=shop.package, form="int8-dynamic", verdict=verdict, weight=100.0)
    rows = [{"user": "u3", "age": 31.5}, {"user": "nobody", "age": 40.0}]
    expected = np.stack(list(ModelPackage.open(shop.folder / "package").predict(pd.DataFrame(rows))["embedding"]))
    async with endpoint(settings, store, version, tmp_path) as inside:
        answer = await inside.client.post("/invocations", json={"dataframe_records": rows})
        assert answer.status_code == 200, answer.text
        found = np.array([one["embedding"] for one in answer.json()["predictions"]])
        np.testing.assert_allclose(found, expected, atol=0.02)
        refused = await inside.client.post("/v1/embeddings", json={"model": "digits", "input": "a text"})
        assert refused.status_code == 400


def test_a_package_without_items_says_so(shop: Shop):
    """Half a package makes no vectors of items."""
    package = ModelPackage.open(shop.folder / "package")
    with pytest.raises(DataError, match="makes no vectors of items"):
        package.item_vectors(pd.DataFrame({"item": ["i1"], "genre": ["g"], "price": [1.0]}))
