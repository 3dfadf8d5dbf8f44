"""Masked language models, from texts to a folder that `transformers` loads, and a verdict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
import torch
import yaml
from pydantic import ValidationError

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Catalog, Origin
from modelyard.compress import CompressConfig, compress
from modelyard.datasets import Dataset
from modelyard.errors import ConfigError, DataError
from modelyard.evaluate import EvaluateConfig, evaluate, refusal
from modelyard.models import HuggingFaceConfig
from modelyard.models.build import load_model
from modelyard.preprocess import PreprocessConfig
from modelyard.settings import Settings
from modelyard.storage import Store
from modelyard.train import DistillConfig, OptimizerConfig, TrainConfig, train
from modelyard.train.assembly import RankSpec, assemble
from modelyard.train.requirements import require_trainable
from modelyard.train.rows import Batch
from modelyard.train.starting import Parents
from tests.textbench import BERT, reviews, text_dataset, tokenizer_folder
from tests.train import runs
from tests.train.ranks import Ranks
from tests.train.test_resume import assert_same
from tests.train.test_starting import assembled


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer that has a mask."""
    from tokenizers import Tokenizer

    folder = tokenizer_folder(tmp_path_factory.mktemp("pretrained") / "masked")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(["[MASK]"])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "mask_token": "[MASK]"}))
    return folder


def masked_config(source: Path, **text: Any) -> PreprocessConfig:
    return PreprocessConfig.model_validate(
        {
            "task": "masked_language_modelling",
            "target": "text",
            "transform": {"text": {"source": f"file://{source}", **text}},
            "split": {"train": 0.6, "validation": 0.2, "test": 0.2},
        }
    )


@pytest.fixture(scope="module")
def texts(catalog: Catalog, reader: Path) -> ArtifactRef:
    return text_dataset(catalog, masked_config(reader, max_length=12))


def spec_of(catalog: Catalog, dataset: ArtifactRef, **changes: Any) -> RankSpec:
    config = settings_of(**changes)
    network = require_trainable(catalog, dataset, config, Parents())
    return RankSpec(
        dataset=dataset,
        config=config.model_copy(update={"model": network}),
        checkpoints=f"{catalog.store.root}/tests/{uuid4().hex}",
    )


def settings_of(**changes: Any) -> TrainConfig:
    # Some vocabularies are filled up: scores behind the tokenizer's mean nothing.
    config = TrainConfig(
        model=HuggingFaceConfig(kind="huggingface", config={**BERT, "vocab_size": 128}),
        optimizer=OptimizerConfig(name="adamw", learning_rate=0.01),
        batch_size=16,
        max_epochs=2,
        ranks=2,
        silence_seconds=60,
    )
    return config.model_copy(update=changes)


def test_a_network_learns_hidden_tokens(catalog: Catalog, settings: Settings, alone: Ranks, texts: ArtifactRef):
    """Better than one that knows nothing. Every row comes once in an epoch, with the epoch in its number, from which follows
    what is hidden of it; its outputs are as many as the tokenizer has tokens."""
    spec = spec_of(catalog, texts, ranks=1, max_epochs=2, batch_size=64)
    ((validations, asked, num_rows),) = alone.run(_fitted, settings, spec)
    vocabulary = json.loads(catalog.read(texts, "target.json"))["width"]
    assert validations[-1]["loss"] < np.log(vocabulary)
    assert validations[-1]["perplexity"] == pytest.approx(np.exp(validations[-1]["loss"]))
    assert num_rows > catalog.manifest(texts).content.facts["splits"]["train"]  # long texts are several
    assert sorted(asked[:num_rows]) == list(range(num_rows))
    assert sorted(asked[num_rows:]) == list(range(num_rows, 2 * num_rows))


def _fitted(settings: Settings, spec: RankSpec) -> tuple[list[dict[str, float]], list[int], int]:
    """Validations of a training, the numbers of the rows that it asked for, and how many there are."""
    made = assemble(spec, Catalog(Store(settings)), runs.CPU, lambda _: None, runs.local_rows(settings))
    asked: list[int] = []
    batch = made.train.batch

    def noted(numbers: torch.Tensor) -> Batch:
        asked.extend(numbers.tolist())
        return batch(numbers)

    made.train.batch = noted  # ty: ignore[invalid-assignment]
    made.fit()
    return made.progress.validations, asked, len(made.train)


def test_its_schema_is_a_preset_again(catalog: Catalog, texts: ArtifactRef):
    """Such a data set has no features to write down."""
    written = yaml.safe_load(catalog.read(texts, "schema.yaml"))["preprocess"]
    assert PreprocessConfig.model_validate(written).text_column == "text"
    assert "features" not in written


def test_long_texts_are_cut_into_pieces(catalog: Catalog, texts: ArtifactRef, tmp_path: Path):
    """No token is lost, and each piece has the marks of beginning and end."""
    transform = Dataset.fetch(catalog, texts, tmp_path, []).transform
    words = ["lovely", *["the", "film"] * 12]
    (pieces,) = transform.pieces([" ".join(words)])
    assert len(pieces) == 3
    assert all(piece[0] == 2 and piece[-1] == 3 and len(piece) <= 12 for piece in pieces)
    inner = [token for piece in pieces for token in piece[1:-1]]
    assert len(inner) == len(words)


def test_what_cannot_be_masked_is_refused(catalog: Catalog, texts: ArtifactRef, reader: Path, tmp_path: Path):
    """A tokenizer without a mask, features, a class to compress: each with what to do."""
    with pytest.raises(ConfigError, match="has no token that stands for a hidden one"):
        text_dataset(catalog, masked_config(tokenizer_folder(tmp_path / "plain")), reviews(60))
    with pytest.raises(ValidationError, match=r"needs transform\.text\.source"):
        PreprocessConfig(task="masked_language_modelling", target="text")
    with pytest.raises(ValidationError, match="learns from the text in `target` alone"):
        PreprocessConfig.model_validate(masked_config(reader).model_dump() | {"features": ["mood"]})
    with pytest.raises(ConfigError, match="compress does not take language models"):
        compress(catalog, texts, texts, CompressConfig(), Origin())


@pytest.mark.soak
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_it_resumes_to_the_bit(catalog: Catalog, settings: Settings, pair: Ranks, texts: ArtifactRef, strategy: str):
    """Stopped in the second epoch, whose hidden tokens are others than the first one's: the same bits."""
    spec, other = (spec_of(catalog, texts, strategy=strategy, batch_size=32) for _ in range(2))
    pair.run(assembled, settings, spec, 11)
    resumed, unbroken = (pair.run(assembled, settings, one)[0] for one in (spec, other))
    assert unbroken[0][-1]["step"] > 11 > unbroken[0][0]["step"]
    assert_same(resumed, unbroken)


@pytest.mark.soak
def test_ranks_hide_the_same_tokens(
    catalog: Catalog, settings: Settings, alone: Ranks, pair: Ranks, texts: ArtifactRef
):
    """One rank or two, copies or shards: one loss curve, over an epoch's end."""
    from tests.train.test_language import curve

    quiet = HuggingFaceConfig(
        kind="huggingface",
        config={**BERT, "vocab_size": 128, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    )
    curves = []
    for group, name in [(alone, "ddp"), (pair, "ddp"), (pair, "fsdp")]:
        spec = spec_of(catalog, texts, model=quiet, strategy=name, ranks=1 if group is alone else 2, batch_size=64)
        curves.append(group.run(curve, settings, spec, 5)[0][0])
    np.testing.assert_allclose(curves[1], curves[0], rtol=1e-4)
    np.testing.assert_allclose(curves[2], curves[0], rtol=1e-4)


@pytest.mark.soak
def test_a_trained_model_is_a_folder_that_transformers_loads_and_is_judged(
    catalog: Catalog, texts: ArtifactRef, tmp_path: Path
):
    """Through torch's launcher, two ranks: `transformers` alone gives the same scores; the verdict has perplexity with an
    interval, better than that of a model that was trained for less, and a metric it has not is refused. A student that hears its
    teacher alone learns nearly as much."""
    from transformers import AutoModelForMaskedLM

    product = train(catalog, texts, settings_of(max_epochs=8), Origin(), lambda _: None)
    less = train(catalog, texts, settings_of(max_epochs=1), Origin(), lambda _: None)
    catalog.fetch(product.ref, tmp_path / "model")
    dataset = Dataset.fetch(catalog, texts, tmp_path / "data", ["validation"])
    inputs = torch.from_numpy(dataset.transform.apply_frame(next(dataset.frames("validation"))))
    with torch.inference_mode():
        network = AutoModelForMaskedLM.from_pretrained(tmp_path / "model").eval()
        own = load_model(tmp_path / "model")(inputs)
        theirs = network(inputs.clamp(min=0), attention_mask=(inputs >= 0).long()).logits
    torch.testing.assert_close(own[inputs >= 0], theirs[inputs >= 0][:, : own.shape[-1]])
    learns = settings_of(max_epochs=8, distill=DistillConfig(weight=1.0), seed=5)
    student = train(catalog, texts, learns, Origin(), lambda _: None, teacher=product.ref)
    losses = [one.manifest.content.facts["metrics"]["loss"] for one in (product, student, less)]
    assert losses[1] < (losses[0] + losses[2]) / 2, losses  # of its teacher alone, and of no text, it learned the most
    config = EvaluateConfig(metric="perplexity", ceiling=60.0, resamples=200)
    verdict = evaluate(catalog, product.ref, texts, less.ref, config, Origin())
    assert refusal(verdict.manifest) is None
    told = json.loads(catalog.read(verdict.ref, "verdict.json"))
    score = told["scores"]["candidate"]
    assert score["low"] < score["value"] < score["high"]
    assert told["comparison"]["probability_better"] > 0.9
    metrics = json.loads(catalog.read(verdict.ref, "metrics.json"))["candidate"]
    assert metrics["perplexity"] == pytest.approx(np.exp(metrics["loss"]))
    assert "bits_per_byte" not in metrics
    with pytest.raises(ConfigError, match="masked_language_modelling has no bits_per_byte; it has perplexity"):
        evaluate(catalog, product.ref, texts, None, EvaluateConfig(metric="bits_per_byte", ceiling=3.0), Origin())
    other = text_dataset(catalog, masked_config(_with_another_word(tmp_path / "other")), reviews(60))
    with pytest.raises(DataError, match="it has another tokenizer"):
        evaluate(catalog, product.ref, other, None, config, Origin())


def _with_another_word(folder: Path) -> Path:
    from tokenizers import Tokenizer

    tokenizer_folder(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(["[MASK]"])
    tokenizer.add_tokens(["zebra"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": "[PAD]", "mask_token": "[MASK]"}))
    return folder
