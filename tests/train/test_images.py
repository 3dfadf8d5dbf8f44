"""Convolutional networks and the data they fit; the whole way of one, from pixels to a verdict."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Catalog, Origin
from modelyard.compress import CompressConfig, MeasureConfig, PruneUnits, SearchConfig, StaticInt8, candidates, compress
from modelyard.compress.candidates import Bench
from modelyard.compress.outcomes import Recipe
from modelyard.compress.workshop import Workshop
from modelyard.errors import ConfigError
from modelyard.evaluate import EvaluateConfig, evaluate, refusal
from modelyard.model_package import ModelPackage
from modelyard.models import CnnConfig, MlpConfig, ReshapedConfig
from modelyard.train import OptimizerConfig, TrainConfig, train
from modelyard.train.requirements import _require_image
from modelyard.transform import FittedTransform
from modelyard.transform.features import Category, FeatureScale
from tests.train.conftest import make_dataset

PIXELS = [f"pixel_{line}_{column}" for line in range(4) for column in range(6)]
SMALL = CnnConfig(kind="cnn", image=(4, 6), channels=(3,))


def transform(names: list[str], **fields: object) -> FittedTransform:
    features = [FeatureScale(name=name, offset=0.0, scale=255.0) for name in names]
    return FittedTransform.model_validate({"features": features, **fields})


def test_pixels_must_fit_the_image():
    """As many as the image has, line by line, each one number; else it is said what the data set gives."""
    _require_image(SMALL, transform(PIXELS))
    _require_image(SMALL, transform([f"p{number}" for number in range(24)]))
    _require_image(MlpConfig(), transform(PIXELS[:3]))
    coloured = [f"{name}_{colour}" for name in PIXELS for colour in ("red", "green", "blue")]
    _require_image(SMALL.model_copy(update={"image_channels": 3}), transform(coloured))
    reshaped = ReshapedConfig(kind="reshaped", base=SMALL, linears={})
    for network in (SMALL, reshaped):
        with pytest.raises(ConfigError, match=r"train\.model\.image: 4 x 6 .* are 24 inputs .* gives 12; .* 2 x 6"):
            _require_image(network, transform(PIXELS[:12]))
    with pytest.raises(ConfigError, match="line by line"):
        _require_image(SMALL, transform(PIXELS[::-1]))
    with pytest.raises(ConfigError, match=r"leave out transform\.select"):
        _require_image(SMALL, transform([*PIXELS, "pixel_9_9"], selected=list(range(24))))
    mixed = [*transform(PIXELS[:21]).features, Category(kind="one_hot", name="place", values=["a", "b", "c"])]
    with pytest.raises(ConfigError, match="columns that are no numbers"):
        _require_image(SMALL, FittedTransform(features=mixed))


@pytest.mark.soak
def test_a_convolutional_network_goes_the_whole_way(catalog: Catalog, tmp_path: Path):
    """Trained, halved and trained on, as int8 within 0.2 points, and judged with attacks and explanations."""
    dataset = make_dataset(catalog)
    config = TrainConfig(
        model=CnnConfig(kind="cnn", image=(8, 8), channels=(16, 32), hidden=64),
        optimizer=OptimizerConfig(learning_rate=0.003),
        max_epochs=16,
        ranks=2,
    )
    model = train(catalog, dataset, config, Origin())
    assert model.manifest.content.facts["metrics"]["accuracy"] > 0.96
    halved = _halved(catalog, model.ref, dataset, config)
    assert halved["macs"] < 0.35
    assert halved["drop"] < 0.02
    package = compress(catalog, model.ref, dataset, CompressConfig(measure=MeasureConfig(repeats=3)), Origin())
    judged = EvaluateConfig(floor=0.95, allowed_drop_against_float=0.002, explained_rows=40)
    verdict = evaluate(catalog, package.ref, dataset, None, judged, Origin())
    assert refusal(verdict.manifest) is None
    assert {"fgsm", "pgd"} < set(json.loads(catalog.read(verdict.ref, "verdict.json"))["attacked"])
    assert json.loads(catalog.read(verdict.ref, "explanations.json"))["grid"] == [8, 8]
    catalog.fetch(package.ref, tmp_path)
    assert ModelPackage.open(tmp_path).form == "int8"


def _halved(catalog: Catalog, model: ArtifactRef, dataset: ArtifactRef, config: TrainConfig) -> dict[str, float]:
    """Half of the channels and units removed, then a few gentle epochs: what is left of the work, and what was lost."""
    search = CompressConfig(search=SearchConfig())
    with Workshop() as workshop:
        bench = Bench(catalog=catalog, workshop=workshop, model=model, dataset=dataset, config=search)
        smaller = candidates.shrink(bench, PruneUnits(fraction=0.5), Origin()).ref
        gentle = config.model_copy(update={"optimizer": OptimizerConfig(learning_rate=0.001), "max_epochs": 6})
        again = train(catalog, dataset, gentle, Origin(), init=smaller).ref
        whole = candidates.build(bench, Recipe(), model, None, Origin())
        pruned = candidates.build(bench, Recipe(network=PruneUnits(fraction=0.5)), again, None, Origin())
        small = candidates.build(bench, Recipe(form=StaticInt8()), model, whole.ref, Origin())
    outcomes = [candidates.outcome_of(product.manifest) for product in (whole, pruned, small)]
    assert outcomes[2].drops["accuracy"].drop <= 0.002
    return {"macs": outcomes[1].macs / outcomes[0].macs, "drop": outcomes[1].drops["accuracy"].drop}
