"""Networks that label tokens: from spans of texts to a folder that `transformers` loads."""

from __future__ import annotations

import json
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
import torch

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Catalog, Origin
from modelyard.datasets import Dataset
from modelyard.errors import ConfigError
from modelyard.models import HuggingFaceConfig, MlpConfig, ModelSpec
from modelyard.models.build import load_model
from modelyard.settings import Settings
from modelyard.storage import Store
from modelyard.task_kinds import NO_TOKEN, Target
from modelyard.train import DistillConfig, OptimizerConfig, RankEvent, StopConfig, TrainConfig, train
from modelyard.train.assembly import RankSpec
from modelyard.train.losses import LOSSES
from modelyard.train.pretrained_network import pretrained_of
from modelyard.train.requirements import require_trainable
from modelyard.train.starting import Parent, Parents
from modelyard.train.tagged_rows import TaggedSplit
from modelyard.transform import TextTransform, read_row_transform
from tests.tagbench import tag_config, tag_dataset
from tests.train.ranks import Ranks
from tests.train.test_resume import assert_same
from tests.train.test_starting import assembled


@pytest.fixture(scope="module")
def tags(catalog: Catalog, source: Path) -> ArtifactRef:
    return tag_dataset(catalog, tag_config(f"file://{source}"))


def settings_of(source: Path, epochs: int = 2) -> TrainConfig:
    return TrainConfig(
        model=HuggingFaceConfig(kind="huggingface", source=f"file://{source}"),
        optimizer=OptimizerConfig(name="adamw", learning_rate=0.01),
        batch_size=16,
        max_epochs=epochs,
        ranks=2,
        silence_seconds=60,
    )


def spec_of(catalog: Catalog, dataset: ArtifactRef, config: TrainConfig) -> RankSpec:
    pretrained = pretrained_of(catalog, config, Origin())
    network = require_trainable(catalog, dataset, config, Parents(), pretrained)
    return RankSpec(
        dataset=dataset,
        config=config.model_copy(update={"model": network}),
        checkpoints=f"{catalog.store.root}/tests/{uuid4().hex}",
        pretrained=pretrained,
    )


def test_a_batch_is_as_wide_as_its_longest_text():
    """Tokens and tags side by side, whatever came together when they were read; what fills up carries no tag, and adds
    nothing to the loss."""
    parts = [
        (np.array([[2, 5, 3, -1], [2, 6, 7, 3]]), np.array([[NO_TOKEN, 1, NO_TOKEN], [NO_TOKEN, 1, 2]])),
        (np.array([[2, 8, 3]]), np.array([[NO_TOKEN, 0, NO_TOKEN]])),
    ]
    parts[0] = (parts[0][0], np.pad(parts[0][1], ((0, 0), (0, 1)), constant_values=NO_TOKEN))
    split = TaggedSplit(parts)
    narrow, wide = split.batch(torch.tensor([2, 0])), split.batch(torch.tensor([1, 0]))
    assert narrow.features.tolist() == [[2, 8, 3], [2, 5, 3]]
    assert narrow.targets.tolist() == [[NO_TOKEN, 0, NO_TOKEN], [NO_TOKEN, 1, NO_TOKEN]]
    assert wide.targets.tolist() == [[NO_TOKEN, 1, 2, NO_TOKEN], [NO_TOKEN, 1, NO_TOKEN, NO_TOKEN]]
    assert split.batch(torch.empty(0, dtype=torch.int64)).targets.shape == (0, 1)
    assert TaggedSplit(parts, fixed=6).batch(torch.tensor([2])).targets.shape == (1, 6)
    outputs = torch.randn(1, 4, 3)
    loss = LOSSES["token_tags"]
    torch.testing.assert_close(loss(outputs, wide.targets[1:]), loss(outputs[:, :3], narrow.targets[1:]))


def test_the_validation_counts_entities(
    catalog: Catalog, settings: Settings, alone: Ranks, tags: ArtifactRef, source: Path
):
    """Those of the whole split, by the name that best weights are chosen by."""
    config = settings_of(source, 1).model_copy(update={"ranks": 1, "stop": StopConfig(metric="span_recall")})
    (((last,), _),) = alone.run(assembled, settings, spec_of(catalog, tags, config))
    assert {"span_f1", "span_precision", "span_recall", "macro_span_f1", "token_accuracy"} <= set(last)
    assert 0 < last["token_accuracy"] < 1
    assert last["loss"] < np.log(7)  # of seven tags that nobody knows anything about


@pytest.mark.soak
def test_it_resumes_to_the_bit(catalog: Catalog, settings: Settings, pair: Ranks, tags: ArtifactRef, source: Path):
    """Stopped in mid-epoch and gone on with: the same bits, dropout and all."""
    spec, other = (spec_of(catalog, tags, settings_of(source, 2)) for _ in range(2))
    pair.run(assembled, settings, spec, 5)
    resumed, unbroken = (pair.run(assembled, settings, one)[0] for one in (spec, other))
    assert unbroken[0][-1]["step"] > 5
    assert_same(resumed, unbroken)


def _no_rank(event: RankEvent) -> None:
    pytest.fail(f"a rank was started: {event}")


def test_what_cannot_label_tokens_is_said_before_a_rank_starts(catalog: Catalog, tags: ArtifactRef, source: Path):
    """A network of numbers; a metric that is none, with the nearest one; a teacher that reads other tokens."""
    with pytest.raises(ConfigError, match="'mlp' is not for token_classification of texts; take huggingface"):
        train(catalog, tags, TrainConfig(model=MlpConfig()), Origin(), _no_rank)
    config = settings_of(source).model_copy(update={"stop": StopConfig(metric="span_f")})
    with pytest.raises(ConfigError, match="did you mean 'span_f1'"):
        train(catalog, tags, config, Origin(), _no_rank)
    transform = read_row_transform(catalog.read(tags, "transform.json"))
    assert isinstance(transform, TextTransform)
    other = transform.model_copy(update={"tokenizer": transform.tokenizer + " "})
    teacher = Parent(
        field="train.distill.teacher",
        ref=tags,
        spec=ModelSpec(model=config.model, input_width=transform.width, output_width=7),
        transform=other,
        target=Target.model_validate_json(catalog.read(tags, "target.json")),
    )
    with pytest.raises(ConfigError, match=r"train\.distill\.teacher: .* has another tokenizer"):
        require_trainable(catalog, tags, settings_of(source), Parents(teacher=teacher))


@pytest.mark.soak
def test_a_trained_network_is_a_folder_that_transformers_loads(
    catalog: Catalog, tags: ArtifactRef, source: Path, tmp_path: Path
):
    """Through torch's launcher, two ranks: it finds the entities, and `transformers` alone gives the same outputs. A student
    that hears its teacher alone, and no label, finds them too."""
    from transformers import AutoModelForTokenClassification

    product = train(catalog, tags, settings_of(source, 30), Origin(), lambda _: None)
    assert product.manifest.content.facts["metrics"]["span_f1"] > 0.8
    catalog.fetch(product.ref, tmp_path / "model")
    dataset = Dataset.fetch(catalog, tags, tmp_path / "data", ["validation"])
    inputs = torch.from_numpy(dataset.transform.apply_frame(next(dataset.frames("validation"))))
    with torch.inference_mode():
        network = AutoModelForTokenClassification.from_pretrained(tmp_path / "model").eval()
        own = load_model(tmp_path / "model")(inputs)
        theirs = network(inputs.clamp(min=0), attention_mask=(inputs >= 0).long()).logits
    torch.testing.assert_close(own[inputs >= 0], theirs[inputs >= 0])
    assert network.config.id2label[1] == "B-bad"
    assert json.loads((tmp_path / "model" / "target.json").read_text())["classes"][0] == "O"
    learns = settings_of(source, 30).model_copy(update={"seed": 5, "distill": DistillConfig(weight=1.0)})
    student = train(catalog, tags, learns, Origin(), lambda _: None, teacher=product.ref)
    assert student.manifest.content.facts["metrics"]["span_f1"] > 0.8


@pytest.mark.soak
def test_two_ranks_follow_the_curve_of_one(
    catalog: Catalog, settings: Settings, store: Store, alone: Ranks, pair: Ranks, tags: ArtifactRef, source: Path
):
    """The same losses, though batches are padded otherwise on each; copies or shards."""
    from tests.train.test_language import curve

    quiet = settings_of(source)
    network = HuggingFaceConfig(
        kind="huggingface",
        source=f"file://{source}",
        config={"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    )
    curves = []
    for group, name in [(alone, "ddp"), (pair, "ddp"), (pair, "fsdp")]:
        changes = {"strategy": name, "ranks": 1 if group is alone else 2, "model": network}
        spec = spec_of(catalog, tags, quiet.model_copy(update=changes))
        curves.append(group.run(curve, settings, spec, 4)[0][0])
    np.testing.assert_allclose(curves[1], curves[0], rtol=1e-4)
    np.testing.assert_allclose(curves[2], curves[0], rtol=1e-4)
