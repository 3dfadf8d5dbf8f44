"""Every strategy, on more ranks than two, on the same language: the long table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Catalog, Origin
from modelyard.models.build import load_model
from modelyard.settings import Settings
from modelyard.storage import Store
from modelyard.train import RankEvent, TrainConfig, train
from modelyard.train.assembly import RankSpec
from modelyard.train.strategy_config import StrategyName
from tests.train.ranks import Ranks, ranks
from tests.train.test_language import SMALL, TEXTS, curve, make_texts
from tests.train.test_resume import assert_same
from tests.train.test_starting import assembled

pytestmark = pytest.mark.soak
QUIET = SMALL.model_copy(
    update={
        "model": SMALL.model.model_copy(update={"dropout": 0.0}),
        "clip_norm": 1.0,
        "max_epochs": 8,
        "ranks": 4,
        "optimizer": SMALL.optimizer.model_copy(update={"learning_rate": 0.003}),
    }
)
# Name of a row -> what it changes. Four ranks each: two groups of two, two workers with two servers.
WAYS: dict[str, dict[str, Any]] = {
    "ddp": {},
    "fsdp": {},
    "hsdp": {},
    "tensor": {},
    "parameter_server": {"parameter_server": {"servers": 2}},
    "parameter_server-asynchronous": {"parameter_server": {"servers": 1, "mode": "asynchronous", "staleness": 3}},
    "diloco": {"diloco": {"every_steps": 15, "momentum": 0.5}},
}
FOLLOW = ["ddp", "fsdp", "hsdp", "tensor", "parameter_server"]  # one process's course, step by step


@pytest.fixture(scope="module")
def texts(catalog: Catalog) -> ArtifactRef:
    return make_texts(catalog, TEXTS)


@pytest.fixture(scope="module")
def quartet(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    with ranks(4, tmp_path_factory.mktemp("ranks")) as group:
        yield group


def spread(way: str, **changes: Any) -> TrainConfig:
    name = way.partition("-")[0]
    return TrainConfig.model_validate(QUIET.model_dump() | changes | {"strategy": name} | WAYS[way])


def spec(store: Store, texts: ArtifactRef, folder: str, config: TrainConfig) -> RankSpec:
    return RankSpec(dataset=texts, config=config, checkpoints=f"{store.root}/tests/{folder}")


def test_the_table_names_every_strategy():
    """Or a new one would be proven nowhere."""
    assert {way.partition("-")[0] for way in WAYS} == set(get_args(StrategyName))


@pytest.mark.parametrize("way", FOLLOW)
def test_four_ranks_follow_the_loss_curve_of_one(
    alone: Ranks, quartet: Ranks, settings: Settings, store: Store, texts: ArtifactRef, folder: str, way: str
):
    """Step by step, with clipping and in two passes."""
    config = spread(way, accumulate=2)
    single = config.model_copy(update={"strategy": "ddp", "ranks": 1})
    one, _ = alone.run(curve, settings, spec(store, texts, f"{folder}/a", single), 6)[0]
    four, _ = quartet.run(curve, settings, spec(store, texts, f"{folder}/b", config), 6)[0]
    np.testing.assert_allclose(four, one, rtol=1e-4)


@pytest.mark.parametrize("way", [*FOLLOW, "diloco"])
def test_four_ranks_resume_to_the_bit(
    quartet: Ranks, settings: Settings, store: Store, texts: ArtifactRef, folder: str, way: str
):
    """With dropout, whose streams each rank, or each group that sees the same rows, has of its own."""
    config = spread(way, model=SMALL.model.model_dump(), max_epochs=2)
    quartet.run(assembled, settings, spec(store, texts, f"{folder}/a", config), 7)
    resumed = quartet.run(assembled, settings, spec(store, texts, f"{folder}/a", config))
    unbroken = quartet.run(assembled, settings, spec(store, texts, f"{folder}/b", config))
    assert_same(resumed[0], unbroken[0])
    assert_same(resumed[0], resumed[3])


def test_strategies_go_on_from_each_others_checkpoints(
    alone: Ranks, quartet: Ranks, settings: Settings, store: Store, texts: ArtifactRef, folder: str
):
    """Round the table within one training, a few steps each: the losses of one process within 1e-3."""
    for at_step, way in enumerate(["fsdp", "tensor", "hsdp", "parameter_server", "tensor", "ddp"], 1):
        config = spread(way, max_epochs=2)
        quartet.run(assembled, settings, spec(store, texts, f"{folder}/a", config), 2 * at_step)
    changed, _ = quartet.run(assembled, settings, spec(store, texts, f"{folder}/a", spread("hsdp", max_epochs=2)))[0]
    single = spread("ddp", max_epochs=2).model_copy(update={"ranks": 1})
    unbroken, _ = alone.run(assembled, settings, spec(store, texts, f"{folder}/b", single))[0]
    for mine, theirs in zip(changed, unbroken, strict=True):
        assert mine["step"] == theirs["step"]
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-3)


def test_all_strategies_learn_the_same_to_the_same_quality(
    alone: Ranks, quartet: Ranks, settings: Settings, store: Store, texts: ArtifactRef, folder: str
):
    """Bits per byte on texts that none has seen: those that follow one process within 0.001 of it; the others no more than
    0.05 above it, given twice as many steps; and all far from where they began."""
    single = spread("ddp").model_copy(update={"ranks": 1})
    one = alone.run(assembled, settings, spec(store, texts, f"{folder}/one", single))[0][0]
    reached = {}
    for way in WAYS:
        config = spread(way, max_epochs=8 if way in FOLLOW else 16)
        validations, _ = quartet.run(assembled, settings, spec(store, texts, f"{folder}/{way}", config))[0]
        reached[way] = validations[-1]["bits_per_byte"]
    assert one[-1]["bits_per_byte"] < one[0]["bits_per_byte"] - 0.3
    for way, found in reached.items():
        assert found < one[-1]["bits_per_byte"] + (0.001 if way in FOLLOW else 0.05), way
        assert found > one[-1]["bits_per_byte"] - 0.001 or way not in FOLLOW, way


@pytest.mark.parametrize("way", ["hsdp", "tensor", "diloco"])
def test_a_launched_training_publishes_a_whole_network(catalog: Catalog, texts: ArtifactRef, tmp_path: Path, way: str):
    """Through torch's launcher, on two ranks: the artifact's weights are whole, finite and of the plain network's shapes."""
    config = spread(way, ranks=2, max_epochs=2)
    events: list[RankEvent] = []
    product = train(catalog, texts, config, Origin(), events.append)
    assert way in next(event.message for event in events if event.kind == "started")
    catalog.fetch(product.ref, tmp_path)
    weights = load_model(tmp_path).state_dict()
    assert product.manifest.content.facts["parameters"] == sum(weight.numel() for weight in weights.values())
    assert all(weight.isfinite().all() for weight in weights.values())
    assert product.manifest.content.facts["metrics"]["bits_per_byte"] < 5
