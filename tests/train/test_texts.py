"""Classifiers of texts: networks of `transformers`, from their folder to a trained one that `transformers` loads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Catalog, Origin, Product
from modelyard.datasets import Dataset
from modelyard.errors import ConfigError, DataError
from modelyard.models import HuggingFaceConfig, MlpConfig
from modelyard.models.build import build_model, load_model
from modelyard.models.transformer import load_pretrained
from modelyard.settings import Settings
from modelyard.storage import Store
from modelyard.train import OptimizerConfig, RankEvent, TrainConfig, train
from modelyard.train.assembly import RankSpec
from modelyard.train.requirements import require_trainable
from modelyard.train.starting import Parents
from tests.textbench import BERT, network_folder, quick_text_model, text_config, text_dataset
from tests.train.ranks import Ranks
from tests.train.test_language import curve
from tests.train.test_resume import assert_same
from tests.train.test_starting import assembled


def settings_of(source: Path | None = None, **changes: Any) -> TrainConfig:
    network = HuggingFaceConfig(kind="huggingface", source=f"file://{source}" if source else "", config=changes)
    return TrainConfig(
        model=network,
        optimizer=OptimizerConfig(name="adamw", learning_rate=0.01),
        batch_size=16,
        max_epochs=6,
        ranks=2,
        silence_seconds=60,
    )


@pytest.fixture(scope="module")
def trained(catalog: Catalog, texts: ArtifactRef, source: Path) -> tuple[Product, list[RankEvent]]:
    """Through torch's launcher, two ranks, sharded."""
    events: list[RankEvent] = []
    config = settings_of(source).model_copy(update={"strategy": "fsdp", "max_shard_bytes": 4000})  # several files
    return train(catalog, texts, config, Origin(), events.append), events


@pytest.mark.soak
def test_a_trained_classifier_is_a_folder_that_transformers_loads(
    catalog: Catalog, texts: ArtifactRef, trained: tuple[Product, list[RankEvent]], tmp_path: Path
):
    """It learns what the texts say; tokenizer, network and names of the classes, read by `transformers` alone, give the same outputs as
    our own; the head was new, and the ranks said so."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    product, events = trained
    assert product.manifest.content.facts["metrics"]["accuracy"] > 0.6
    assert any("random weights: classifier.bias, classifier.weight" in event.message for event in events)
    catalog.fetch(product.ref, tmp_path / "model")
    dataset = Dataset.fetch(catalog, texts, tmp_path / "data", ["validation"])
    frame = next(dataset.frames("validation"))
    inputs = dataset.transform.apply_frame(frame)
    with torch.inference_mode():
        own = load_model(tmp_path / "model")(torch.from_numpy(inputs))
        network = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
        reader = AutoTokenizer.from_pretrained(tmp_path / "model")
        assert reader is not None
        given = reader(list(frame["text"]), padding=True, truncation=True, return_tensors="pt")
        theirs = network(given["input_ids"], attention_mask=given["attention_mask"]).logits
    torch.testing.assert_close(own, theirs)
    assert network.config.id2label == {0: "bad", 1: "good", 2: "odd"}
    model = json.loads((tmp_path / "model" / "model.json").read_text())["model"]
    assert model["source"] == ""  # what counts is in the artifact
    assert "pretrained" in product.manifest.content.inputs


def test_training_begins_with_the_weights_of_the_folder(
    catalog: Catalog, settings: Settings, store: Store, alone: Ranks, texts: ArtifactRef, source: Path, folder: str
):
    """All of them but the head's, whichever rank asks; without a source they are random."""
    given = load_file(source / "model.safetensors")
    for config, wanted in ((settings_of(source), True), (settings_of(None, **BERT), False)):
        spec = _spec(catalog, texts, config, f"{store.root}/tests/{folder}/{wanted}")
        (found,) = alone.run(_first_weights, settings, spec)
        same = [np.array_equal(found[f"network.bert.{name}"], value.numpy()) for name, value in given.items()]
        assert all(same) if wanted else not all(same)


def _first_weights(settings: Settings, spec: RankSpec) -> dict[str, np.ndarray]:
    from modelyard.train.assembly import assemble
    from tests.train import runs

    made = assemble(spec, Catalog(Store(settings)), runs.CPU, lambda _: None, runs.local_rows(settings))
    return {name: value.numpy() for name, value in runs.weights(made).items()}


def _spec(catalog: Catalog, dataset: ArtifactRef, config: TrainConfig, checkpoints: str) -> RankSpec:
    from modelyard.train.pretrained_network import pretrained_of

    pretrained = pretrained_of(catalog, config, Origin())
    network = require_trainable(catalog, dataset, config, Parents(), pretrained)
    whole = config.model_copy(update={"model": network})
    return RankSpec(dataset=dataset, config=whole, checkpoints=checkpoints, pretrained=pretrained)


@pytest.mark.soak
def test_ranks_and_strategies_follow_one_loss_curve(
    catalog: Catalog,
    settings: Settings,
    store: Store,
    alone: Ranks,
    pair: Ranks,
    texts: ArtifactRef,
    source: Path,
    folder: str,
):
    """One rank, two with a copy each, two with shards: the same losses, though batches are padded otherwise on each. So
    it is with rows of fixed length."""
    quiet = settings_of(source, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    curves = []
    for group, name in [(alone, "ddp"), (pair, "ddp"), (pair, "fsdp")]:
        config = quiet.model_copy(update={"strategy": name, "ranks": 1 if group is alone else 2})
        spec = _spec(catalog, texts, config, f"{store.root}/tests/{folder}/{len(curves)}")
        curves.append(group.run(curve, settings, spec, 4)[0])
    np.testing.assert_allclose(curves[1][0], curves[0][0], rtol=1e-4)
    np.testing.assert_allclose(curves[2][0], curves[0][0], rtol=1e-4)
    assert [sharded for _, sharded in curves] == [0, 0, 3]
    fixed = text_dataset(catalog, text_config(f"file://{source}", padding="fixed"))
    spec = _spec(catalog, fixed, quiet.model_copy(update={"ranks": 1}), f"{store.root}/tests/{folder}/fixed")
    np.testing.assert_allclose(alone.run(curve, settings, spec, 4)[0][0], curves[0][0], rtol=1e-4)


@pytest.mark.parametrize("ranks", ["alone", pytest.param("pair", marks=pytest.mark.soak)])
def test_it_resumes_to_the_bit(
    catalog: Catalog,
    settings: Settings,
    store: Store,
    request: pytest.FixtureRequest,
    texts: ArtifactRef,
    source: Path,
    folder: str,
    ranks: str,
):
    """Stopped in mid-epoch and gone on with: the same bits, dropout and all. The last batch gives one of two ranks no row."""
    config = settings_of(source).model_copy(update={"max_epochs": 2, "batch_size": 11})
    pair: Ranks = request.getfixturevalue(ranks)

    def spec(name: str) -> RankSpec:
        return _spec(catalog, texts, config, f"{store.root}/tests/{folder}/{name}")

    pair.run(assembled, settings, spec("a"), 5)
    resumed, unbroken = pair.run(assembled, settings, spec("a"))[0], pair.run(assembled, settings, spec("b"))[0]
    assert unbroken[0][-1]["step"] > 5
    assert_same(resumed, unbroken)


@pytest.mark.soak
def test_a_trained_classifier_begins_and_teaches_another(
    catalog: Catalog, settings: Settings, store: Store, alone: Ranks, texts: ArtifactRef, source: Path, folder: str,
    tmp_path: Path,
):  # fmt: skip
    """Its network and weights, head and all; and its answers, learned beside the labels."""
    parent = quick_text_model(catalog, texts, source, epochs=2)
    config = settings_of(source).model_copy(update={"ranks": 1, "max_epochs": 1})
    spec = RankSpec(
        dataset=texts, config=config, checkpoints=f"{store.root}/tests/{folder}", init=parent, teacher=parent
    )
    (found,) = alone.run(_first_weights, settings, spec)
    catalog.fetch(parent, tmp_path, ["model.safetensors"])
    given = load_file(tmp_path / "model.safetensors")
    assert all(np.array_equal(found[f"network.{name}"], value.numpy()) for name, value in given.items())
    ((validations, _),) = alone.run(assembled, settings, spec)
    assert np.isfinite(validations[-1]["loss"])


# -- what is refused ----------------------------------------------------------------------------------


def _no_rank(event: RankEvent) -> None:
    pytest.fail(f"a rank was started: {event}")


def test_a_folder_of_pickles_is_refused_by_name(catalog: Catalog, texts: ArtifactRef, source: Path, tmp_path: Path):
    """Beside safetensors a pickle is left where it is; alone it is refused, and so is a folder without weights."""
    (source / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    config = settings_of(source)
    assert "pytorch_model.bin" not in catalog.manifest(_spec(catalog, texts, config, "s3://x").pretrained).content.files
    bad = tmp_path / "bad"
    shutil.copytree(source, bad)
    (bad / "model.safetensors").unlink()
    with pytest.raises(DataError, match=r"train\.model\.source: .*pytorch_model\.bin, and such a file can run code"):
        train(catalog, texts, settings_of(bad), Origin(), _no_rank)
    (bad / "pytorch_model.bin").unlink()
    with pytest.raises(DataError, match=r"has no model\.safetensors"):
        train(catalog, texts, settings_of(bad), Origin(), _no_rank)


def test_what_does_not_fit_is_said_before_a_rank_starts(
    catalog: Catalog, texts: ArtifactRef, dataset: ArtifactRef, source: Path, tmp_path: Path
):
    """A network that reads no text, or nothing but text; another tokenizer; no class or kind of that name, with the nearest one; fewer
    positions than a row has tokens; weights of another network."""
    with pytest.raises(ConfigError, match="'mlp' is not for classification of texts; take huggingface, or custom"):
        train(catalog, texts, TrainConfig(model=MlpConfig()), Origin(), _no_rank)
    with pytest.raises(ConfigError, match="'huggingface' is not for classification; take mlp"):
        train(catalog, dataset, settings_of(source), Origin(), _no_rank)
    other = network_folder(tmp_path / "other")
    reader = json.loads((other / "tokenizer.json").read_text())
    reader["model"]["vocab"]["zzz"] = 500
    (other / "tokenizer.json").write_text(json.dumps(reader))
    with pytest.raises(ConfigError, match="has another tokenizer"):
        train(catalog, texts, settings_of(other), Origin(), _no_rank)
    with pytest.raises(ConfigError, match="did you mean 'bert'"):
        train(catalog, texts, settings_of(source, model_type="bertt"), Origin(), _no_rank)
    with pytest.raises(ConfigError, match=r"max_position_embeddings of .* is 8, fewer than the 24 tokens of a row"):
        train(catalog, texts, settings_of(source, max_position_embeddings=8), Origin(), _no_rank)
    wrong = settings_of(source).model_copy(
        update={
            "model": HuggingFaceConfig(
                kind="huggingface", source=f"file://{source}", auto_class="AutoModelForSequenceClasification"
            )
        }
    )
    with pytest.raises(ConfigError, match="did you mean AutoModelForSequenceClassification"):
        train(catalog, texts, wrong, Origin(), _no_rank)
    headless = HuggingFaceConfig(kind="huggingface", auto_class="AutoModel", config={**BERT, "vocab_size": 80})
    with pytest.raises(ConfigError, match=r"train\.model\.auto_class: BertModel gives no logits; leave it to the task"):
        build_model(headless, 8, 3)(torch.zeros(1, 2, dtype=torch.int64))
    wide = _spec(catalog, texts, settings_of(source, hidden_size=64), "s3://x").config.model
    with pytest.raises(ConfigError, match="lacks most of the weights"):
        load_pretrained(wide, 3, source)
