"""Trainings of a part: adapters beside the weights, or some of the weights; published as if all had been trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import nn

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Catalog, Origin, Product, Work
from modelyard.errors import ConfigError
from modelyard.models import HuggingFaceConfig
from modelyard.models.build import load_model
from modelyard.models.weights import StoredWeights
from modelyard.settings import Settings
from modelyard.storage import Store
from modelyard.train import InitConfig, LoraConfig, OptimizerConfig, RankEvent, TrainConfig, train
from modelyard.train.adapters import merge_, prepare_
from modelyard.train.assembly import RankSpec
from modelyard.train.publish import publish
from tests.textbench import BERT
from tests.train.ranks import Ranks
from tests.train.test_resume import assert_same
from tests.train.test_starting import assembled
from tests.train.test_texts import _spec

LORA = InitConfig(lora=LoraConfig(rank=2, alpha=8, targets=["query", "value"]))
QUERY = "bert.encoder.layer.1.attention.self.query.weight"


def config_of(source: Path, init: InitConfig, **changes: Any) -> TrainConfig:
    return TrainConfig(
        model=HuggingFaceConfig(kind="huggingface", source=f"file://{source}"),
        init=init,
        optimizer=OptimizerConfig(name="adamw", learning_rate=0.01),
        batch_size=16,
        max_epochs=1,
    ).model_copy(update=changes)


def published(catalog: Catalog, spec: RankSpec) -> Product:
    """The artifact of a training that has ended, as the stage makes it."""
    work = Work(kind="model", config={"checkpoints": spec.checkpoints}, inputs={}, code_version="test")
    return catalog.produce(work, lambda attempt: publish(catalog, attempt, spec, spec.config.model), Origin())


@pytest.mark.soak
def test_adapters_alone_are_trained_and_kept_and_then_added_up(
    catalog: Catalog,
    settings: Settings,
    store: Store,
    pair: Ranks,
    texts: ArtifactRef,
    source: Path,
    folder: str,
    tmp_path: Path,
):
    """Sharded, on two ranks: the checkpoint holds adapters and the new head and nothing else; the published weights are W + (alpha /
    rank) B A, all others those of the folder to the bit, in several files; it loads as any other network."""
    config = config_of(source, LORA, strategy="fsdp", max_shard_bytes=4000)
    spec = _spec(catalog, texts, config, f"{store.root}/tests/{folder}")
    (_, held), _ = pair.run(assembled, settings, spec)
    assert {name.rpartition(".")[2] for name in held} == {"weight", "bias"}
    assert all("lora_" in name or name.startswith("network.classifier.") for name in held)
    product = published(catalog, spec)
    catalog.fetch(product.ref, tmp_path)
    stored, given = StoredWeights(tmp_path), load_file(source / "model.safetensors")
    made = stored.tensors()
    assert stored.is_sharded
    adapters = {
        name.partition("lora_")[2][0]: torch.from_numpy(held[name])
        for name in held
        if ".layer.1.attention.self.query." in name
    }
    expected = given[QUERY.removeprefix("bert.")] + 8 / 2 * adapters["B"] @ adapters["A"]
    torch.testing.assert_close(made[QUERY], expected)
    assert not torch.equal(made[QUERY], given[QUERY.removeprefix("bert.")])
    still = [name for name in given if not name.endswith(("query.weight", "value.weight"))]
    assert all(torch.equal(made[f"bert.{name}"], given[name]) for name in still)
    assert load_model(tmp_path)(torch.tensor([[2, 5, 3]])).shape == (1, 3)
    facts = product.manifest.content.facts
    assert facts["trained_parameters"] == 4 * 2 * (16 + 16) + 3 * 17 < facts["parameters"] / 10


@pytest.mark.soak
def test_frozen_parts_stay_to_the_bit(
    catalog: Catalog,
    settings: Settings,
    store: Store,
    alone: Ranks,
    texts: ArtifactRef,
    source: Path,
    folder: str,
    tmp_path: Path,
):
    """Embeddings and the first layer are those of the folder, and in no checkpoint; the second one moved."""
    init = InitConfig(freeze=["embeddings", "layer.0"])
    spec = _spec(catalog, texts, config_of(source, init, ranks=1), f"{store.root}/tests/{folder}")
    ((_, held),) = alone.run(assembled, settings, spec)
    assert not any(".embeddings." in name or ".layer.0." in name for name in held)
    product = published(catalog, spec)
    catalog.fetch(product.ref, tmp_path)
    made, given = load_file(tmp_path / "model.safetensors"), load_file(source / "model.safetensors")
    same = {name for name in given if torch.equal(made[f"bert.{name}"], given[name])}
    assert {name for name in given if name.startswith(("embeddings.", "encoder.layer.0."))} <= same
    assert not any(name.startswith("encoder.layer.1.") for name in same)


@pytest.mark.soak
def test_it_resumes_to_the_bit(
    catalog: Catalog, settings: Settings, store: Store, pair: Ranks, texts: ArtifactRef, source: Path, folder: str
):
    """Stopped in mid-epoch and gone on with, dropout of adapters and an average of them under way: the same bits."""
    init = InitConfig(lora=LoraConfig(rank=2, dropout=0.2))
    config = config_of(source, init, ema_decay=0.9)

    def spec(name: str) -> RankSpec:
        return _spec(catalog, texts, config, f"{store.root}/tests/{folder}/{name}")

    pair.run(assembled, settings, spec("a"), 4)
    resumed, unbroken = pair.run(assembled, settings, spec("a"))[0], pair.run(assembled, settings, spec("b"))[0]
    assert unbroken[0][-1]["step"] > 4
    assert_same(resumed, unbroken)


def test_adapters_are_added_up_into_the_weights():
    """W + (alpha / rank) B A, under the names that the layers had; a layer that nobody named stays, and so does what the network
    computes before the first step."""
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    given, rows = {name: value.clone() for name, value in network.state_dict().items()}, torch.randn(5, 4)
    expected = network(rows)
    prepare_(network, InitConfig(lora=LoraConfig(rank=2, alpha=6, targets=["0"])), [])
    torch.testing.assert_close(network(rows), expected)
    names = [name for name, weight in network.named_parameters() if weight.requires_grad]
    assert names == ["0.lora_A.default.weight", "0.lora_B.default.weight"]
    one, other = torch.randn(2, 4), torch.randn(8, 2)
    made = merge_(network, dict(zip(names, (one, other), strict=True)))
    assert made.keys() == given.keys()
    torch.testing.assert_close(made["0.weight"], given["0.weight"] + 3 * other @ one)
    assert all(torch.equal(made[name], given[name]) for name in given if name != "0.weight")


def _no_rank(event: RankEvent) -> None:
    pytest.fail(f"a rank was started: {event}")


@pytest.mark.parametrize(("init", "words"), [
    (InitConfig(lora=LoraConfig(targets=["querry"])), r"train\.init\.lora\.targets: the network has no linear layer 'querry'; did you mean query"),
    (InitConfig(freeze=["embedings"]), r"train\.init\.freeze: the network has no part 'embedings'; did you mean embeddings"),
])  # fmt: skip
def test_names_that_are_not_there_are_refused_with_the_nearest(
    catalog: Catalog, texts: ArtifactRef, source: Path, init: InitConfig, words: str
):
    """Before a rank is started."""
    with pytest.raises(ConfigError, match=words):
        train(catalog, texts, config_of(source, init), Origin(), _no_rank)


def test_random_weights_are_not_kept(catalog: Catalog, texts: ArtifactRef, source: Path):
    """Adapters need something worth keeping beneath them; nor do they go with zeros that are to stay."""
    bare = config_of(source, LORA, model=HuggingFaceConfig(kind="huggingface", config=BERT))
    with pytest.raises(ConfigError, match=r"train\.init: lora and freeze keep weights as they are"):
        train(catalog, texts, bare, Origin(), _no_rank)
    with pytest.raises(ValidationError, match="choose one"):
        InitConfig(lora=LoraConfig(), keep_zeros=True)


def test_another_rank_is_other_work(catalog: Catalog, texts: ArtifactRef, source: Path):
    """The part that is trained is in the key, though no model is named to begin with."""
    from modelyard.train.stage import training_work
    from modelyard.train.starting import Parents

    one, other = (config_of(source, InitConfig(lora=LoraConfig(rank=rank))) for rank in (2, 3))
    keys = {training_work(texts, config, Parents()).key for config in (one, other, config_of(source, InitConfig()))}
    assert len(keys) == 3
