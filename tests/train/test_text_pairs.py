"""Networks for vectors of texts, trained on pairs."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Catalog, Origin
from modelyard.datasets import TARGET_FILE, TRANSFORM_FILE, Dataset
from modelyard.errors import ConfigError
from modelyard.models import HuggingFaceConfig, MlpConfig, ModelSpec
from modelyard.models.build import load_model
from modelyard.settings import Settings
from modelyard.storage import Store
from modelyard.task_kinds import Target
from modelyard.train import DistillConfig, OptimizerConfig, TrainConfig, train
from modelyard.train.pair_rows import text_pairs
from modelyard.train.pretrained_network import pretrained_of
from modelyard.train.requirements import require_trainable
from modelyard.train.starting import Parent, Parents
from modelyard.transform import TextTransform, read_row_transform
from tests.textbench import BERT, pair_config, pairs, text_dataset
from tests.train.ranks import Ranks
from tests.train.test_language import curve
from tests.train.test_resume import assert_same
from tests.train.test_starting import assembled
from tests.train.test_texts import _spec

QUIET = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def settings_of(source: Path, **changes: Any) -> TrainConfig:
    network = HuggingFaceConfig(kind="huggingface", source=f"file://{source}", pooling="mean", config=QUIET)
    rate = OptimizerConfig(name="adamw", learning_rate=0.003)
    return TrainConfig.model_validate(
        {"model": network, "optimizer": rate, "batch_size": 15, "max_epochs": 4, "ranks": 2, **changes}
    )


def together(catalog: Catalog, source: Path) -> ArtifactRef:
    """Texts that belong together, some of them with the same partner."""
    frame = pairs(160).drop(columns="likeness")
    again = frame.iloc[:10].assign(text=[text + " the" for text in frame["text"][:10]])
    config = pair_config(f"file://{source}", "")
    split = {"train": 0.6, "validation": 0.3, "test": 0.1}
    whole = type(config).model_validate({**config.model_dump(exclude_unset=True), "split": split})
    return text_dataset(catalog, whole, pd.concat([frame, again]))


def likened(catalog: Catalog, source: Path) -> ArtifactRef:
    """Pairs with a likeness of 0 to 5."""
    config = pair_config(f"file://{source}")
    split = {"train": 0.6, "validation": 0.3, "test": 0.1}
    whole = type(config).model_validate({**config.model_dump(exclude_unset=True), "split": split})
    return text_dataset(catalog, whole, pairs(240).assign(likeness=lambda rows: rows["likeness"] * 5))


def test_rows_hold_both_texts(catalog: Catalog, source: Path, tmp_path: Path):
    """As wide as the longer of the two; partners that say the same have one number and stand in the catalogue once; likenesses
    are divided by the largest of training, in both splits."""
    ref = together(catalog, source)
    dataset = Dataset.fetch(catalog, ref, tmp_path / "together", [])
    train_rows, rows = text_pairs(catalog, ref, dataset)
    numbers, partners = rows.batch(torch.arange(len(rows))).targets[:, 0], pd.Series(rows_of(catalog, ref, "other"))
    assert len(train_rows.catalogue) < len(train_rows)
    assert len(rows.catalogue) == partners.nunique() == int(numbers.max()) + 1
    some = rows.batch(torch.tensor([3, 0])).features
    expected = dataset.transform.tokens([rows_of(catalog, ref, "text")[3], partners[3]])
    assert some[0, :, : expected.shape[1]].tolist() == expected.tolist()
    ref = likened(catalog, source)
    told = text_pairs(catalog, ref, Dataset.fetch(catalog, ref, tmp_path / "likened", []))
    assert [float(one.batch(torch.arange(len(one))).targets.max()) for one in told] == [1.0, 1.0]


def rows_of(catalog: Catalog, ref: ArtifactRef, column: str) -> list[str]:
    names = [name for name in catalog.manifest(ref).content.files if name.startswith("validation/")]
    return [value for name in sorted(names) for value in pd.read_parquet(BytesIO(catalog.read(ref, name)))[column]]


@pytest.mark.soak
def test_texts_are_told_from_all_of_a_step_and_likenesses_are_learned(
    catalog: Catalog, settings: Settings, store: Store, alone: Ranks, pair: Ranks, source: Path, folder: str
):
    """One rank and two follow one curve, for partners to be found and for likenesses; these are brought to what a cosine
    reaches, and the rank correlation grows."""
    for name, ref in (("together", together(catalog, source)), ("likened", likened(catalog, source))):
        one = _spec(catalog, ref, settings_of(source, ranks=1), f"{store.root}/tests/{folder}/{name}")
        two = _spec(catalog, ref, settings_of(source), f"{store.root}/tests/{folder}/{name}")
        ((expected, _),) = alone.run(curve, settings, one, 4)
        (found, _), _ = pair.run(curve, settings, two, 4)
        assert found == pytest.approx(expected, rel=1e-4)
    (validations, _), _ = pair.run(assembled, settings, two)
    assert validations[-1]["spearman"] > max(validations[0]["spearman"], 0.3)
    assert validations[-1]["loss"] < 0.3


@pytest.mark.soak
@pytest.mark.parametrize(("strategy", "learns"), [
    ("ddp", {}), ("fsdp", {}), ("ddp", {"hidden": {"layers": 2}}), ("fsdp", {"hidden": {"layers": 2, "loss": "cosine"}}),
])  # fmt: skip
def test_training_of_vectors_resumes_to_the_bit(
    catalog: Catalog, settings: Settings, store: Store, pair: Ranks, source: Path, folder: str, strategy: str,
    learns: dict[str, Any],
):  # fmt: skip
    """Stopped in mid-epoch; a text finds its own partner more often than before training. With a teacher of wider vectors and
    states the projections come back too."""
    ref, config = together(catalog, source), settings_of(source, strategy=strategy, max_epochs=12)
    specs = [_spec(catalog, ref, config, f"{store.root}/tests/{folder}/{name}") for name in ("a", "b")]
    if learns:
        teacher = train(catalog, ref, settings_of(source, max_epochs=2), Origin()).ref
        specs = [_spec(catalog, ref, narrow(max_epochs=12, strategy=strategy), one.checkpoints) for one in specs]
        told = specs[0].config.model_copy(update={"distill": DistillConfig.model_validate(learns)})
        specs = [one.model_copy(update={"config": told, "teacher": teacher}) for one in specs]
    unbroken = pair.run(assembled, settings, specs[0])[0]
    pair.run(assembled, settings, specs[1], 17)
    assert_same(pair.run(assembled, settings, specs[1])[0], unbroken)
    recalls = [one["recall_at_1"] for one in unbroken[0]]
    assert recalls[-1] > recalls[0]
    assert np.isfinite([one["loss"] for one in unbroken[0]]).all()


def narrow(**changes: Any) -> TrainConfig:
    """A student that comes without weights, its vectors half as wide."""
    keys = {**BERT, **QUIET, "hidden_size": 8, "intermediate_size": 16}
    network = {"kind": "huggingface", "pooling": "mean", "config": keys}
    rate = {"name": "adamw", "learning_rate": 0.01}
    return TrainConfig.model_validate(
        {"model": network, "optimizer": rate, "batch_size": 15, "max_epochs": 20, "ranks": 2, **changes}
    )


@pytest.mark.soak
def test_a_student_of_vectors_comes_near_to_its_teacher(catalog: Catalog, source: Path, tmp_path: Path):
    """Through torch's launcher, two ranks: how alike it holds texts that it was not trained on is nearer to what its teacher
    says than what one says that learned from the same pairs alone. What belongs together and likenesses; layers with it."""
    pairs_of = {"together": together(catalog, source), "likened": likened(catalog, source)}
    teacher = train(catalog, pairs_of["together"], settings_of(source, max_epochs=20), Origin()).ref

    def cosines(ref: ArtifactRef, texts: list[str]) -> np.ndarray:
        catalog.fetch(ref, tmp_path / ref.digest)
        reader = read_row_transform((tmp_path / ref.digest / TRANSFORM_FILE).read_bytes())
        assert isinstance(reader, TextTransform)
        with torch.inference_mode():
            vectors = load_model(tmp_path / ref.digest)(torch.from_numpy(reader.apply(reader.tokens(texts))))
        alike = torch.nn.functional.normalize(vectors, dim=-1)
        return (alike @ alike.T).numpy()[np.triu_indices(len(texts), 1)]

    def nearness(kind: str, distill: dict[str, Any], taught_by: ArtifactRef | None) -> float:
        made = train(catalog, pairs_of[kind], narrow(distill=distill), Origin(), teacher=taught_by).ref
        texts = rows_of(catalog, pairs_of[kind], "text")
        return float(np.corrcoef(cosines(made, texts), cosines(teacher, texts))[0, 1])

    for kind in pairs_of:
        untaught = nearness(kind, {}, None)
        for distill in ({"weight": 1.0}, {"weight": 1.0, "hidden": {"layers": 2}}):
            taught = nearness(kind, distill, teacher)
            print(kind, distill, "taught", taught, "untaught", untaught)
            assert taught > untaught + 0.1


def test_a_network_that_makes_no_vectors_is_refused(catalog: Catalog, source: Path):
    """Before a rank is started: another kind, and passes that would cut what a text is told from."""
    ref = together(catalog, source)

    def refused(config: TrainConfig, words: str) -> None:
        with pytest.raises(ConfigError, match=words):
            train(catalog, ref, config, Origin(), lambda _: pytest.fail("a rank was started"))

    refused(TrainConfig(model=MlpConfig()), "'mlp' is not for embedding of texts; take huggingface$")
    refused(settings_of(source, accumulate=2), r"train\.accumulate: .*passes would cut it")
    refused(settings_of(source, stop={"metric": "spearman"}), r"train\.stop\.metric")


def test_a_teacher_that_cannot_read_the_pairs_is_refused(catalog: Catalog, source: Path):
    """Before a rank is started: one of another task, one that reads other tokens, one that knows fewer places than a text
    has. One that was trained on likenesses may teach what belongs together."""
    ref = together(catalog, source)
    transform = read_row_transform(catalog.read(ref, TRANSFORM_FILE))
    assert isinstance(transform, TextTransform)
    network = HuggingFaceConfig(kind="huggingface", source=f"file://{source}")
    teacher = Parent(
        field="train.distill.teacher",
        ref=ref,
        spec=ModelSpec(model=network, input_width=transform.width, output_width=16),
        transform=transform,
        target=Target.model_validate_json(catalog.read(ref, TARGET_FILE)).model_copy(update={"similarity": "likeness"}),
    )

    def refused(words: str, **other: Any) -> None:
        with pytest.raises(ConfigError, match=words):
            require_trainable(catalog, ref, settings_of(source), Parents(teacher=replace(teacher, **other)))

    tagger = teacher.target.model_copy(update={"task": "token_classification"})
    refused(r"train\.distill\.teacher: .* is for token_classification, the data set for embedding", target=tagger)
    other = transform.model_copy(update={"tokenizer": transform.tokenizer + " "})
    refused(r"train\.distill\.teacher: .* has another tokenizer \(\w+\) than the data set", transform=other)
    few = network.model_copy(update={"config": {"max_position_embeddings": transform.max_length - 1}})
    spec = teacher.spec.model_copy(update={"model": few})
    refused(r"reads 23 tokens of a text, the data set has up to 24: a smaller preprocess\.transform", spec=spec)
    pretrained = pretrained_of(catalog, settings_of(source), Origin())
    require_trainable(catalog, ref, settings_of(source), Parents(teacher=teacher), pretrained)
