"""Networks for vectors of texts, trained on pairs."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Catalog, Origin
from modelyard.datasets import Dataset
from modelyard.errors import ConfigError
from modelyard.models import HuggingFaceConfig, MlpConfig
from modelyard.settings import Settings
from modelyard.storage import Store
from modelyard.train import OptimizerConfig, TrainConfig, train
from modelyard.train.pair_rows import text_pairs
from tests.textbench import pair_config, pairs, text_dataset
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
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_training_of_vectors_resumes_to_the_bit(
    catalog: Catalog, settings: Settings, store: Store, pair: Ranks, source: Path, folder: str, strategy: str
):
    """Stopped in mid-epoch; a text finds its own partner more often than before training."""
    ref, config = together(catalog, source), settings_of(source, strategy=strategy, max_epochs=12)
    specs = [_spec(catalog, ref, config, f"{store.root}/tests/{folder}/{name}") for name in ("a", "b")]
    unbroken = pair.run(assembled, settings, specs[0])[0]
    pair.run(assembled, settings, specs[1], 17)
    assert_same(pair.run(assembled, settings, specs[1])[0], unbroken)
    recalls = [one["recall_at_1"] for one in unbroken[0]]
    assert recalls[-1] > recalls[0]
    assert np.isfinite([one["loss"] for one in unbroken[0]]).all()


def test_a_network_that_makes_no_vectors_is_refused(catalog: Catalog, source: Path):
    """Before a rank is started: another kind, and passes that would cut what a text is told from."""
    ref = together(catalog, source)

    def refused(config: TrainConfig, words: str) -> None:
        with pytest.raises(ConfigError, match=words):
            train(catalog, ref, config, Origin(), lambda _: pytest.fail("a rank was started"))

    refused(TrainConfig(model=MlpConfig()), "'mlp' is not for embedding of texts; take huggingface$")
    refused(settings_of(source, accumulate=2), r"train\.accumulate: .*passes would cut it")
    refused(settings_of(source, stop={"metric": "spearman"}), r"train\.stop\.metric")
