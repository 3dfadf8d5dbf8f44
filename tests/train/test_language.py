"""Language models, from texts in a bucket to a folder that `transformers` loads."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.distributed.fsdp import FSDPModule

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Catalog, Origin, Product, Work
from modelyard.compress import CompressConfig, compress
from modelyard.datasets import Dataset
from modelyard.errors import ConfigError, DataError
from modelyard.models import GptConfig, MlpConfig
from modelyard.models.weights import StoredWeights, weight_files
from modelyard.preprocess import PreprocessConfig, preprocess, snapshot
from modelyard.sample_data import topics_jsonl
from modelyard.settings import Settings
from modelyard.storage import Store
from modelyard.token_data import TokenData
from modelyard.train import OptimizerConfig, RankEvent, ScheduleConfig, StopConfig, TensorConfig, TrainConfig, train
from modelyard.train.assembly import RankSpec, assemble
from modelyard.train.publish import publish
from modelyard.train.strategy_config import SHARDED
from tests.train import runs
from tests.train.ranks import Ranks
from tests.train.test_resume import assert_same
from tests.train.test_starting import assembled
from tests.workbench import upload

TEXTS = PreprocessConfig.model_validate(
    {
        "task": "language_modelling",
        "target": "text",
        "identity": ["topic"],
        "transform": {"tokens": {"vocabulary": 400, "sequence_length": 32}},
    }
)
SMALL = TrainConfig(
    model=GptConfig(kind="gpt", layers=2, width=32, heads=4, key_value_heads=2, dropout=0.1),
    optimizer=OptimizerConfig(name="adamw", learning_rate=0.01),
    batch_size=32,
    max_epochs=2,
    ranks=2,
    silence_seconds=60,
    max_shard_bytes=40_000,
)
NUM_TEXTS = 40


@pytest.fixture(scope="module")
def texts(catalog: Catalog) -> ArtifactRef:
    return make_texts(catalog, TEXTS)


def make_texts(catalog: Catalog, config: PreprocessConfig) -> ArtifactRef:
    """A part of the sample texts, every one of another topic."""
    ((name, body),) = topics_jsonl()
    lines = {json.loads(line)["topic"]: line for line in body.splitlines()}
    folder = upload(catalog.store, {name: b"\n".join(list(lines.values())[:NUM_TEXTS])})
    return preprocess(catalog, snapshot(catalog, folder, Origin()).ref, config, Origin()).ref


def with_tokens(**changes: int) -> PreprocessConfig:
    tokens = TEXTS.transform.tokens.model_dump() | changes
    return PreprocessConfig.model_validate(TEXTS.model_dump() | {"transform": {"tokens": tokens}})


@pytest.fixture(scope="module")
def trained(catalog: Catalog, texts: ArtifactRef) -> Product:
    """Through torch's launcher, two ranks, sharded."""
    events: list[RankEvent] = []
    product = train(catalog, texts, SMALL.model_copy(update={"strategy": "fsdp"}), Origin(), events.append)
    assert "2 ranks on cpu, fsdp" in next(event.message for event in events if event.kind == "started")
    return product


def test_a_trained_language_model_is_a_folder_that_transformers_loads(
    catalog: Catalog, texts: ArtifactRef, trained: Product, tmp_path: Path
):
    """Shards were put together, and are published in several files: tokenizer and network give, on the validation texts, the very loss that training kept; bits per byte follow
    from the texts' bytes; it is better than any guess that knows only how many tokens there are."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    catalog.fetch(trained.ref, tmp_path / "model")
    assert len(weight_files(trained.manifest.content.files)) > 3
    reader = AutoTokenizer.from_pretrained(tmp_path / "model")
    network = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    facts = trained.manifest.content.facts
    data = TokenData.fetch(catalog, texts, tmp_path / "data", ["validation"])
    sequences = data.sequences("validation")
    tokens, following = map(torch.from_numpy, sequences.read(np.arange(len(sequences))))
    with torch.no_grad():
        scores = network(tokens).logits
    nats = torch.nn.functional.cross_entropy(scores.flatten(0, 1), following.flatten(), ignore_index=-100)
    count = int((following >= 0).sum())
    assert facts["metrics"]["loss"] == pytest.approx(float(nats), rel=1e-4)
    assert facts["metrics"]["perplexity"] == pytest.approx(math.exp(float(nats)), rel=1e-4)
    text = reader.decode(following[following >= 0]).replace(reader.eos_token, "")
    bits = float(nats) * count / math.log(2) / len(text.encode())
    assert facts["metrics"]["bits_per_byte"] == pytest.approx(bits, rel=1e-4)
    assert float(nats) < math.log(data.transform.vocabulary) - 0.5
    assert trained.manifest.content.facts["headline"] == "bits_per_byte"


def test_samples_show_what_was_given_and_what_came_of_it(catalog: Catalog, trained: Product):
    """Three beginnings from the validation split, each continued."""
    samples = catalog.read(trained.ref, "samples.md").decode()
    assert samples.count("**given**") == samples.count("**continued**") == 3
    assert all(len(part.strip()) > 20 for part in samples.split("**continued**")[1:])


def test_one_file_or_several_are_one_model(catalog: Catalog, texts: ArtifactRef, trained: Product, tmp_path: Path):
    """Published again from the same checkpoint, below the bound: the same weights to the bit, and the same samples of
    them, read from the disk or loaded. Of weights that are too many to be read for each token there are none, and the file says so."""
    checkpoints = f"{trained.ref.uri}/checkpoints"
    spec = RankSpec(dataset=texts, config=SMALL.model_copy(update={"max_shard_bytes": 10**9}), checkpoints=checkpoints)

    def published(name: str, **changes: int) -> Product:
        work = Work(kind="model", config={"name": name}, inputs={"dataset": texts}, code_version="test")
        return catalog.produce(
            work, lambda attempt: publish(catalog, attempt, spec, spec.config.model, **changes), Origin()
        )

    whole, silent = published("whole"), published("silent", sampled_bytes=1000)
    assert weight_files(whole.manifest.content.files) == ["model.safetensors"]
    one, other = (catalog.fetch(product.ref, tmp_path / product.ref.digest) for product in (whole, trained))
    assert one.content.facts == other.content.facts
    assert one.content.files["samples.md"] == other.content.files["samples.md"]
    single, several = (StoredWeights(tmp_path / product.ref.digest).tensors() for product in (whole, trained))
    assert single.keys() == several.keys()
    assert all(torch.equal(single[name], several[name]) for name in single)
    samples = catalog.read(silent.ref, "samples.md").decode()
    assert samples.startswith("No samples: the weights take 0.0 GB. Above 0.0 GB none are made")


@pytest.mark.parametrize(
    "strategy", ["fsdp", *(pytest.param(name, marks=pytest.mark.soak) for name in ("ddp", "hsdp", "tensor"))]
)
def test_it_resumes_to_the_bit(
    pair: Ranks, settings: Settings, store: Store, texts: ArtifactRef, trained: Product, folder: str, strategy: str
):
    """Stopped in mid-epoch and gone on with: the same bits, from random weights as from those of another model whose
    answers are learned from too."""
    config = SMALL.model_copy(update={"strategy": strategy, "max_epochs": 1})
    taught: dict[str, Any] = {"init": trained.ref, "teacher": trained.ref} if strategy == "fsdp" else {}

    def spec(name: str) -> RankSpec:
        return RankSpec(dataset=texts, config=config, checkpoints=f"{store.root}/tests/{folder}/{name}", **taught)

    pair.run(assembled, settings, spec("a"), 5)
    resumed, unbroken = pair.run(assembled, settings, spec("a"))[0], pair.run(assembled, settings, spec("b"))[0]
    assert unbroken[0][-1]["step"] > 5
    assert_same(resumed, unbroken)


def began_with(settings: Settings, spec: RankSpec) -> tuple[bool, dict[str, np.ndarray]]:
    """Whether the network was without values when it was sharded, and what it begins with."""
    made = assemble(spec, Catalog(Store(settings)), runs.CPU, lambda _: None, runs.local_rows(settings))
    had_none = made.stepper._draws
    made._begin()
    return had_none, {name: value.numpy() for name, value in runs.weights(made).items()}


def test_ranks_that_shard_begin_with_a_trained_network_part_by_part(
    pair: Ranks, settings: Settings, catalog: Catalog, texts: ArtifactRef, trained: Product, folder: str, tmp_path: Path
):
    """Its weights to the bit, of which no rank holds more than its share; those of another network are refused."""
    catalog.fetch(trained.ref, tmp_path)
    wanted = StoredWeights(tmp_path).tensors()
    config = SMALL.model_copy(update={"strategy": "fsdp"})
    spec = RankSpec(dataset=texts, config=config, checkpoints=f"{catalog.store.root}/tests/{folder}", init=trained.ref)
    for had_none, found in pair.run(began_with, settings, spec):
        assert had_none
        assert found.keys() == wanted.keys()
        assert all(np.array_equal(found[name], value.numpy()) for name, value in wanted.items())
    narrow = config.model_copy(update={"model": SMALL.model.model_copy(update={"hidden": 96})})
    pair.run(refused, settings, spec.model_copy(update={"config": narrow}))


def refused(settings: Settings, spec: RankSpec) -> None:
    words = r"does not fit the network of model@\w+: model\.layers\.0\.mlp\.down_proj\.weight is \[32, 128\] there and \[32, 96\]"
    with pytest.raises(DataError, match=words):
        began_with(settings, spec)


def read_to_the_end(settings: Settings, spec: RankSpec) -> tuple[str, int, int, float]:
    """What ended a training, its steps, the tokens that it had read, and the last learning rate."""
    made = assemble(spec, Catalog(Store(settings)), runs.CPU, lambda _: None, runs.local_rows(settings))
    progress = made.fit()
    return progress.stopped_by, progress.step, progress.tokens, made.stepper.optimizers[0].param_groups[0]["lr"]


def test_training_ends_after_so_many_tokens(pair: Ranks, settings: Settings, store: Store, texts: ArtifactRef):
    """Counted over all ranks; the first step that reaches the number is the last, and the schedule has ended by then."""
    config = SMALL.model_copy(
        update={"stop": StopConfig(max_tokens=32 * 32 * 4 + 1), "schedule": ScheduleConfig(name="linear")}
    )
    spec = RankSpec(dataset=texts, config=config, checkpoints=f"{store.root}/tests/{uuid4().hex}")
    for found in pair.run(read_to_the_end, settings, spec):
        assert found == ("stop.max_tokens", 5, 5 * 32 * 32, pytest.approx(0.01 / 5))


def curve(settings: Settings, spec: RankSpec, steps: int) -> tuple[list[float], int]:
    """The loss of each of the first steps, and how many parts of the network are sharded by themselves."""
    made = assemble(spec, Catalog(Store(settings)), runs.CPU, lambda _: None, runs.local_rows(settings))
    # No rank of a gpt began with the whole network; others cannot draw their weights one by one.
    assert made.stepper._draws == (spec.config.strategy in SHARDED and isinstance(spec.config.model, GptConfig))
    made._begin()
    sharded = sum(isinstance(module, FSDPModule) for module in made.stepper.network.modules())
    return runs.losses_of(made, steps), sharded


def test_ranks_and_strategies_follow_one_loss_curve(
    alone: Ranks, pair: Ranks, settings: Settings, store: Store, texts: ArtifactRef
):
    """One rank, two with a copy each, with shards, with halves of each matrix (the embedding's tied or not): the same losses
    within float tolerance. Blocks are sharded one by one, and the rest together."""
    quiet = SMALL.model_copy(
        update={"model": SMALL.model.model_copy(update={"dropout": 0.0}), "clip_norm": 0.5, "accumulate": 2}
    )
    free = quiet.model_copy(update={"model": quiet.model.model_copy(update={"tie_embeddings": False})})

    def followed(group: Ranks, config: TrainConfig, name: str) -> tuple[list[float], int]:
        config = config.model_copy(update={"strategy": name, "ranks": 1 if group is alone else 2})
        spec = RankSpec(dataset=texts, config=config, checkpoints=f"{store.root}/tests/{uuid4().hex}")
        return group.run(curve, settings, spec, 4)[0]

    one = followed(alone, quiet, "ddp")[0]
    assert one[-1] < one[0]
    for name, sharded in {"ddp": 0, "fsdp": 3, "tensor": 3}.items():
        losses, num_parts = followed(pair, quiet, name)
        np.testing.assert_allclose(losses, one, rtol=1e-4, err_msg=name)
        assert num_parts == sharded
    np.testing.assert_allclose(followed(pair, free, "tensor")[0], followed(alone, free, "ddp")[0], rtol=1e-4)


def test_a_tensor_parallel_model_starts_from_and_becomes_a_whole_one(
    pair: Ranks, settings: Settings, store: Store, texts: ArtifactRef, folder: str
):
    """Checkpoints have the names and shapes of the plain network: ddp, tensor, fsdp go on from each other, losses within
    1e-3 of undisturbed, dropout aside."""
    quiet = SMALL.model_copy(update={"model": SMALL.model.model_copy(update={"dropout": 0.0}), "max_epochs": 1})

    def spec(name: str, strategy: str) -> RankSpec:
        config = quiet.model_copy(update={"strategy": strategy})
        return RankSpec(dataset=texts, config=config, checkpoints=f"{store.root}/tests/{folder}/{name}")

    pair.run(assembled, settings, spec("a", "ddp"), 2)
    pair.run(assembled, settings, spec("a", "tensor"), 4)
    changed = pair.run(assembled, settings, spec("a", "fsdp"))[0][0][-1]
    unbroken = pair.run(assembled, settings, spec("b", "ddp"))[0][0][-1]
    assert changed["step"] == unbroken["step"] > 4
    for name in ("train_loss", "loss"):
        assert changed[name] == pytest.approx(unbroken[name], abs=1e-3)


# -- what is refused ----------------------------------------------------------------------------------


def _no_rank(event: RankEvent) -> None:
    pytest.fail(f"a rank was started: {event}")


def test_networks_for_numbers_and_for_texts_are_told_apart(catalog: Catalog, texts: ArtifactRef, dataset: ArtifactRef):
    """A network that cannot read the data set is refused before a rank is started, with one that can; so are more ranks
    than sequences, and a starting model with another tokenizer."""
    with pytest.raises(
        ConfigError, match=r"train\.model\.kind: 'mlp' is not for language_modelling; take gpt, or custom"
    ):
        train(catalog, texts, SMALL.model_copy(update={"model": MlpConfig()}), Origin(), _no_rank)
    with pytest.raises(
        ConfigError, match=r"train\.model\.kind: 'gpt' is not for classification; take mlp, cnn, or custom"
    ):
        train(catalog, dataset, SMALL, Origin(), _no_rank)
    few = make_texts(catalog, with_tokens(sequence_length=20_000))
    with pytest.raises(ConfigError, match=r"train\.ranks: 16 ranks for \d training rows"):
        train(catalog, few, SMALL.model_copy(update={"ranks": 16}), Origin(), _no_rank)


def test_what_cannot_be_split_starts_no_rank(catalog: Catalog, texts: ArtifactRef, dataset: ArtifactRef):
    """A network without a plan, with one that has it; heads that ranks cannot share, with their number."""
    split = {"strategy": "tensor", "ranks": 4, "tensor": TensorConfig(size=4)}
    with pytest.raises(
        ConfigError, match=r"train\.strategy: tensor has no plan for a network of kind 'mlp'; gpt has one; take fsdp"
    ):
        train(catalog, dataset, SMALL.model_copy(update={**split, "model": MlpConfig()}), Origin(), _no_rank)
    with pytest.raises(
        ConfigError, match=r"train\.tensor\.size: 4 ranks cannot share the network's 2 key_value_heads evenly"
    ):
        train(catalog, texts, SMALL.model_copy(update=split), Origin(), _no_rank)


def test_a_model_with_another_tokenizer_is_refused(catalog: Catalog, trained: Product):
    """Its numbers would mean other words."""
    with pytest.raises(ConfigError, match=r"train\.init\.model: .*has another tokenizer"):
        train(catalog, make_texts(catalog, with_tokens(vocabulary=300)), SMALL, Origin(), _no_rank, init=trained.ref)


def test_stages_that_do_not_take_language_models_say_so(
    catalog: Catalog, texts: ArtifactRef, trained: Product, tmp_path: Path
):
    """Compression names the task, and what there is instead; so does whatever reads a data set as rows of a table."""
    with pytest.raises(ConfigError, match="what reads rows of a table does not take language models yet"):
        Dataset.fetch(catalog, texts, tmp_path, ["test"])
    with pytest.raises(
        ConfigError, match="compress does not take language models: a form is judged by one answer a row"
    ):
        compress(catalog, trained.ref, texts, CompressConfig(), Origin())


@pytest.mark.parametrize(("update", "words"), [
    ({"features": ["topic"]}, "learns from the text in `target` alone"),
    ({"split": {"method": "stratified"}, "identity": []}, "a text has none"),
    ({"transform": {"tokens": {"vocabulary": 100}}}, "greater than or equal to 257"),
])  # fmt: skip
def test_what_a_language_model_cannot_use_is_refused(update: dict[str, Any], words: str):
    """Said when the preset is read."""
    with pytest.raises(ValidationError, match=words):
        PreprocessConfig.model_validate(TEXTS.model_dump() | update)
