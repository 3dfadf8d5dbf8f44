"""Predicting a number: from scikit-learn's diabetes data to a judged package, and linear layers under MSE."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.datasets import load_diabetes
from sklearn.metrics import r2_score
from torch import nn

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Catalog, Origin
from modelyard.compress import CompressConfig, compress
from modelyard.datasets import Dataset
from modelyard.errors import ConfigError, DataError
from modelyard.evaluate import EvaluateConfig, evaluate, refusal
from modelyard.metrics import RegressionMetrics
from modelyard.model_package import ModelPackage
from modelyard.models import MlpConfig
from modelyard.models.build import build_model
from modelyard.preprocess import PreprocessConfig, preprocess, snapshot
from modelyard.settings import Settings
from modelyard.train import OptimizerConfig, StopConfig, TrainConfig, train
from modelyard.train.rows import Split
from modelyard.train.validation import Objective
from modelyard.transform import TransformConfig
from tests.train import runs
from tests.train.ranks import Ranks
from tests.workbench import parquet_bytes, upload

REGRESSION = PreprocessConfig(target="target", task="regression", transform=TransformConfig(scaling="standard"))


@pytest.fixture(scope="module")
def diabetes(catalog: Catalog) -> ArtifactRef:
    """442 patients: ten measurements, and how far the disease went in a year (25 to 346)."""
    frame = load_diabetes(as_frame=True, scaled=False).frame
    folder = upload(catalog.store, {"diabetes.parquet": parquet_bytes(frame)})
    source = snapshot(catalog, f"{folder}/*.parquet", Origin())
    return preprocess(catalog, source.ref, REGRESSION, Origin()).ref


def test_regression_from_rows_to_a_verdict(catalog: Catalog, diabetes: ArtifactRef, tmp_path: Path):
    """Trained on standardised targets, judged and answered in the target's own units by every form of the package."""
    config = TrainConfig(
        model=MlpConfig(hidden_sizes=(32,), dropout=0.2),
        optimizer=OptimizerConfig(name="adamw", learning_rate=0.01, weight_decay=0.05),
        stop=StopConfig(patience=8),
        max_epochs=40,
        checkpoint_every_epochs=40,
        ranks=1,
    )
    model = train(catalog, diabetes, config, Origin())
    facts = model.manifest.content.facts
    assert facts["headline"] == "r2"
    assert set(facts["metrics"]) == {"r2", "mae", "rmse", "loss", "train_loss"}
    assert 20 < facts["metrics"]["mae"] < 60

    package = compress(catalog, model.ref, diabetes, CompressConfig(), Origin())
    gates = EvaluateConfig(metric="r2", floor=0.3, allowed_drop_against_float=0.05, slices=("sex",))
    verdict = evaluate(catalog, package.ref, diabetes, package.ref, gates, Origin())
    assert refusal(verdict.manifest) is None
    document = json.loads(catalog.read(verdict.ref, "verdict.json"))
    score = document["scores"]["candidate"]
    assert score["low"] < score["value"] < score["high"]
    assert document["comparison"]["probability_better"] == 0.5  # against itself
    assert sum(one["rows"] for one in document["slices"]) == json.loads(
        catalog.read(verdict.ref, "metrics.json")
    )["candidate"]["rows"]  # fmt: skip
    assert document["attacked"]["pgd"]["candidate"] < document["attacked"]["undisturbed"]["candidate"]
    assert "is closer on" in " ".join(catalog.read(verdict.ref, "report.html").decode().split())
    with pytest.raises(ConfigError, match="regression has no accuracy; it has r2, mae, rmse, loss"):
        evaluate(catalog, package.ref, diabetes, None, EvaluateConfig(), Origin())

    catalog.fetch(package.ref, tmp_path / "package")
    frame = next(Dataset.fetch(catalog, diabetes, tmp_path / "data", ["test"]).frames("test"))
    answers = ModelPackage.open(tmp_path / "package").predict(frame)["value"]
    r2 = verdict.manifest.content.facts["metrics"]["candidate"]["r2"]
    assert r2_score(frame["target"], answers) == pytest.approx(r2, abs=1e-6)


def test_a_target_of_words_is_no_regression(catalog: Catalog):
    """Refused at the first rows, by file and column; a list of classes is refused before that."""
    frame = load_diabetes(as_frame=True).frame.assign(target="much")
    folder = upload(catalog.store, {"words.parquet": parquet_bytes(frame)})
    source = snapshot(catalog, f"{folder}/*.parquet", Origin())
    with pytest.raises(DataError, match=r"words\.parquet: column 'target' should hold numbers"):
        preprocess(catalog, source.ref, REGRESSION, Origin())
    with pytest.raises(ValidationError, match="target_values lists classes"):
        PreprocessConfig(target="y", task="regression", target_values=[1, 2])


def test_unreadable_targets_are_quarantined(catalog: Catalog, tmp_path: Path):
    """A row whose target is null or infinite is refused, not imputed; the others keep their exact values."""
    frame = load_diabetes(as_frame=True).frame
    frame.loc[[3, 4], "target"] = [np.nan, np.inf]
    folder = upload(catalog.store, {"holes.parquet": parquet_bytes(frame)})
    source = snapshot(catalog, f"{folder}/*.parquet", Origin())
    product = preprocess(catalog, source.ref, REGRESSION, Origin())
    assert product.manifest.content.facts["rejected"] == 2
    dataset = Dataset.fetch(catalog, product.ref, tmp_path, ["train"])
    assert set(next(dataset.frames("train"))["target"]) <= set(frame["target"])
    _, targets = dataset.load("train")
    assert targets.mean() == pytest.approx(0, abs=1e-5)
    assert targets.std() == pytest.approx(1, abs=1e-5)


def linear_layers(settings: Settings, folder: str) -> tuple[list[float], float]:
    """Losses of 1000-2000-3000-4000 linear layers under MSE, and how far its weights end from a bare loop's."""
    shape = MlpConfig(hidden_sizes=(2000, 3000), dropout=0.0, activation="identity")
    sgd = OptimizerConfig(name="sgd", learning_rate=2.0)
    config = TrainConfig(model=shape, optimizer=sgd, batch_size=8, max_epochs=1, ranks=1)
    draw = torch.Generator().manual_seed(0)
    data = Split(features=torch.randn(32, 1000, generator=draw), targets=torch.randn(32, 4000, generator=draw))
    torch.manual_seed(0)
    network, bare = build_model(shape, 1000, 4000), build_model(shape, 1000, 4000)
    bare.load_state_dict(network.state_dict())
    mse = Objective(loss="mean_squared_error", metric="loss", new_metric=RegressionMetrics)
    made = runs.trainer(settings, folder, config, train=data, network=network, objective=mse)
    plain, losses = torch.optim.SGD(bare.parameters(), lr=2.0), []
    for _ in range(2):
        made._train_steps()
        rows = made._order.last_batch
        plain.zero_grad()
        loss = nn.functional.mse_loss(bare(data.features[rows]), data.targets[rows])
        loss.backward()
        plain.step()
        losses.append(loss.item())
    assert float(made.loss_sum) / 16 == pytest.approx(np.mean(losses), rel=1e-5)
    pairs = zip(network.parameters(), bare.parameters(), strict=True)
    return losses, max(float((one - other).abs().max()) for one, other in pairs)


@pytest.mark.soak
def test_linear_layers_under_mse_follow_a_bare_loop(alone: Ranks, settings: Settings, folder: str):
    """1000-2000-3000-4000 without activation: 20 million weights move as in a bare loop, and the loss falls."""
    ((losses, distance),) = alone.run(linear_layers, settings, folder)
    assert distance < 1e-5
    assert losses[-1] < losses[0]
