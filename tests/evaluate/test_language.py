"""Verdicts on language models: real ones, of real texts, by what they foretell."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Attempt, Catalog, Origin, Work
from modelyard.datasets import TARGET_FILE, TRANSFORM_FILE
from modelyard.errors import ConfigError, DataError
from modelyard.evaluate import EvaluateConfig, evaluate, refusal
from modelyard.models import GptConfig, ModelSpec
from modelyard.models.build import build_model, load_model, save_model
from modelyard.preprocess import PreprocessConfig, preprocess, snapshot
from modelyard.sample_data import topics_jsonl
from modelyard.settings import Settings
from modelyard.storage import Store
from modelyard.token_data import TokenData
from tests.workbench import own_catalog, upload

BOUNDS = EvaluateConfig(metric="bits_per_byte", ceiling=8.0, resamples=200)


@pytest.fixture(scope="module")
def catalog(store: Store, settings: Settings) -> Catalog:
    del store
    return own_catalog(settings)


def make_texts(catalog: Catalog, vocabulary: int) -> ArtifactRef:
    ((name, body),) = topics_jsonl()
    folder = upload(catalog.store, {name: b"\n".join(body.splitlines()[:24])})
    tokens = {"vocabulary": vocabulary, "sequence_length": 32}
    tree = {"task": "language_modelling", "target": "text", "transform": {"tokens": tokens}}
    config = PreprocessConfig.model_validate(tree)
    return preprocess(catalog, snapshot(catalog, folder, Origin()).ref, config, Origin()).ref


def make_model(catalog: Catalog, dataset: ArtifactRef, steps: int) -> ArtifactRef:
    """A model artifact as training publishes it, after some steps in this process."""

    def build(attempt: Attempt) -> None:
        data = TokenData.fetch(catalog, dataset, attempt.scratch / "data", ["train"])
        config = GptConfig(kind="gpt", layers=1, width=32, heads=2)
        spec = ModelSpec(model=config, input_width=32, output_width=len(data.target.token_bytes))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = build_model(config, 32, spec.output_width)
        optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
        tokens, following = map(torch.from_numpy, data.sequences("train").read(np.arange(32)))
        for _ in range(steps):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(tokens).flatten(0, 1), following.flatten()).backward()
            optimizer.step()
        for name in save_model(spec, network.state_dict(), attempt.scratch, max_shard_bytes=20_000 if steps else 10**9):
            attempt.add(name, attempt.scratch / name)
        for name in (TRANSFORM_FILE, TARGET_FILE):
            attempt.add_bytes(name, catalog.read(dataset, name))

    work = Work(kind="model", config={"steps": steps}, inputs={"dataset": dataset}, code_version="test")
    return catalog.produce(work, build, Origin()).ref


@pytest.fixture(scope="module")
def texts(catalog: Catalog) -> ArtifactRef:
    return make_texts(catalog, 300)


@pytest.fixture(scope="module")
def models(catalog: Catalog, texts: ArtifactRef) -> tuple[ArtifactRef, ArtifactRef]:
    """One that has learned a little, its weights in several files, and one that has not."""
    return make_model(catalog, texts, 15), make_model(catalog, texts, 0)


def test_scores_are_those_of_every_token_of_the_test_split(
    catalog: Catalog, texts: ArtifactRef, models: tuple[ArtifactRef, ArtifactRef], tmp_path: Path
):
    """Bits a byte and perplexity as torch counts them over the whole split at once; each lies in its interval."""
    product = evaluate(catalog, models[0], texts, None, BOUNDS, Origin())
    found = json.loads(catalog.read(product.ref, "metrics.json"))["candidate"]
    data = TokenData.fetch(catalog, texts, tmp_path / "data", ["test"])
    sequences = data.sequences("test")
    tokens, following = map(torch.from_numpy, sequences.read(np.arange(len(sequences))))
    catalog.fetch(models[0], tmp_path / "model")
    with torch.no_grad():
        scores = load_model(tmp_path / "model")(tokens).flatten(0, 1)
    nats = torch.nn.functional.cross_entropy(scores, following.flatten(), reduction="sum", ignore_index=-100)
    there = following[following >= 0]
    num_bytes = np.array(data.target.token_bytes)[there.numpy()].sum()
    assert found["bits_per_byte"] == pytest.approx(float(nats) / math.log(2) / num_bytes, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(float(nats) / len(there)), rel=1e-5)
    for name in ("bits_per_byte", "perplexity", "loss"):
        assert found["intervals"][name]["low"] < found[name] < found["intervals"][name]["high"]
    assert refusal(product.manifest) is None
    assert "bits_per_byte" in catalog.read(product.ref, "report.html").decode()
    card = catalog.read(product.ref, "model-card.md").decode()
    for words in (models[0].digest, texts.digest, "is a gpt", "licence: not stated", "interval of bits_per_byte"):
        assert words in card


def test_a_worse_model_is_refused(catalog: Catalog, texts: ArtifactRef, models: tuple[ArtifactRef, ArtifactRef]):
    """Above the ceiling, and above the champion; the other way round it is better for sure, but not where a bound asks for
    what nobody measures of it."""
    learned, fresh = models
    config = BOUNDS.model_copy(update={"ceiling": 5.0, "probability_better": 0.9, "ceilings": {"loss": 99.0}})
    refused = evaluate(catalog, fresh, texts, learned, config, Origin())
    reasons = refused.manifest.content.facts["reasons"]
    assert len(reasons) == 3
    assert "bits_per_byte" in reasons[0]
    assert "is above the limit 5.0000" in reasons[0]
    assert "against champion" in reasons[1]
    better = evaluate(catalog, learned, texts, fresh, config, Origin())
    assert refusal(better.manifest) is None
    unmeasured = config.model_copy(update={"max_calibration_error": 0.5, "allowed_drop_under_attack": 1.0})
    (one, other) = refusal(evaluate(catalog, learned, texts, fresh, unmeasured, Origin()).manifest).reasons
    assert "calibration error could not be computed" in one
    assert "bits_per_byte under attack could not be computed" in other
    comparison = json.loads(catalog.read(better.ref, "verdict.json"))["comparison"]
    assert comparison["probability_better"] > 0.99
    assert comparison["difference"]["low"] > 0


def test_a_pickle_beside_the_weights_is_refused(catalog: Catalog, texts: ArtifactRef):
    """By its name, before anything is fetched."""

    def build(attempt: Attempt) -> None:
        attempt.add_bytes("optimizer.pt", b"cos\nsystem\n(S'true'\ntR.")

    work = Work(kind="model", config={"name": "pickled"}, inputs={}, code_version="test")
    pickled = catalog.produce(work, build, Origin()).ref
    with pytest.raises(DataError, match=r"the package holds optimizer\.pt: only"):
        evaluate(catalog, pickled, texts, None, BOUNDS, Origin())


def test_what_cannot_be_compared_is_refused(
    catalog: Catalog, texts: ArtifactRef, models: tuple[ArtifactRef, ArtifactRef]
):
    """A model with another tokenizer, a metric of classes, slices, a ceiling that nobody says."""
    other = make_texts(catalog, 290)
    with pytest.raises(
        DataError, match=r"the candidate .* cannot be judged on this data set: it has another tokenizer"
    ):
        evaluate(catalog, models[0], other, None, BOUNDS, Origin())
    with pytest.raises(
        ConfigError, match=r"evaluate\.metric: language_modelling has no accuracy; it has bits_per_byte"
    ):
        evaluate(catalog, models[0], texts, None, EvaluateConfig(), Origin())
    with pytest.raises(ConfigError, match=r"evaluate\.ceilings: 'rmse' is not known.*There are bits_per_byte"):
        evaluate(catalog, models[0], texts, None, BOUNDS.model_copy(update={"ceilings": {"rmse": 1.0}}), Origin())
    with pytest.raises(ConfigError, match=r"evaluate\.slices"):
        evaluate(catalog, models[0], texts, None, BOUNDS.model_copy(update={"slices": ("topic",)}), Origin())
    with pytest.raises(ValidationError, match="ceiling goes with bits_per_byte or perplexity"):
        EvaluateConfig(metric="perplexity")
