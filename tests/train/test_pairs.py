"""Networks whose rows are pairs: what is learned does not depend on who computes it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import distributed, nn

from modelyard.catalog import Catalog, Origin
from modelyard.datasets import Dataset
from modelyard.errors import ConfigError, Preempted
from modelyard.models import RecommenderConfig
from modelyard.models.build import build_model
from modelyard.retrieval import RetrievalMetrics
from modelyard.settings import Settings
from modelyard.train import OptimizerConfig, TrainConfig, train
from modelyard.train.contrast import Peers, in_batch_softmax
from modelyard.train.loop import Trainer
from modelyard.train.pair_rows import Pairs
from modelyard.train.rows import Split
from modelyard.train.validation import Objective, validate
from tests.clickbench import click_dataset
from tests.train import runs
from tests.train.ranks import Ranks

USERS, ITEMS = 30, 20
MODEL = RecommenderConfig(
    kind="recommender", vector_width=8, embedding_width=4, hidden_sizes=(8,),
    query_tables=(USERS + 1, 0), item_tables=(ITEMS + 1,),
)  # fmt: skip
PLAIN = TrainConfig(
    model=MODEL, batch_size=17, max_epochs=3, ranks=1, optimizer=OptimizerConfig(learning_rate=0.02), ema_decay=0.9
)


def meetings(rows: int, seed: int) -> Pairs:
    """Users, each with a number, who like the items that leave the same rest."""
    rng = np.random.default_rng(seed)
    user = rng.integers(0, USERS, rows)
    item = (rng.integers(0, ITEMS // 5, rows) * 5 + user % 5).astype(np.float32)
    told = np.column_stack([item, np.full(rows, -np.log(ITEMS)), rng.integers(1, 3, rows)]).astype(np.float32)
    features = np.column_stack([user + 1, rng.normal(size=rows), item + 1]).astype(np.float32)
    whole = np.arange(ITEMS, dtype=np.float32)
    catalogue = np.column_stack([np.zeros((ITEMS, 2), np.float32), whole + 1])
    return Pairs(rows=Split.of(features, told), catalogue=Split.of(catalogue, whole))


def trainer(settings: Settings, folder: str, config: TrainConfig) -> Trainer:
    torch.manual_seed(config.seed)
    objective = Objective(
        loss="in_batch_softmax",
        metric="recall_at_10",
        new_metric=RetrievalMetrics,
        temperature=config.pairs.temperature,
    )
    network = build_model(config.model, 2, MODEL.vector_width)
    rows: Any = meetings(100, 0)
    return runs.trainer(settings, folder, config, train=rows, network=network, objective=objective)


def curve(settings: Settings, folder: str, config: TrainConfig) -> tuple[list[float], dict[str, float]]:
    """The global loss of the first steps, then a validation."""
    made = trainer(settings, folder, config)
    losses = runs.losses_of(made, 8)
    return losses, validate(made.stepper, made.validation, made._objective, 7)


def fitted(settings: Settings, folder: str, config: TrainConfig, at_step: int = 0) -> Any:
    made = trainer(settings, folder, config)
    if at_step:
        runs.stop_after(made, at_step)
        with pytest.raises(Preempted):
            made.fit()
    else:
        made.fit()
    return json.dumps(made.progress.validations), {name: one.numpy() for name, one in runs.weights(made).items()}


def served(config: TrainConfig) -> TrainConfig:
    return config.model_copy(update={"strategy": "parameter_server", "ranks": 3})


def test_the_loss_is_the_papers():
    """Yi et al., equation 5: scores over the temperature, less the logarithm of the frequency, softmax over the items of the
    batch; an item that stands there again is no wrong answer; rows count by their weights."""
    draw = torch.Generator().manual_seed(0)
    outputs = torch.randn(4, 2, 3, generator=draw)
    shares = torch.tensor([0.5, 0.25, 0.5, 0.125])
    targets = torch.stack([torch.tensor([7.0, 8.0, 7.0, 9.0]), shares.log(), torch.tensor([1.0, 2.0, 1.0, 0.0])], dim=1)
    expected = 0.0
    for row in range(4):
        scores = {
            other: float(outputs[row, 0] @ outputs[other, 1]) / 0.5 - float(shares[other].log())
            for other in range(4)
            if other == row or targets[other, 0] != targets[row, 0]
        }
        total = np.log(sum(np.exp(one) for one in scores.values()))
        expected += float(targets[row, 2]) * (total - scores[row])
    options = {"peers": Peers(), "temperature": 0.5}
    assert float(in_batch_softmax(outputs, targets, **options)) == pytest.approx(expected, rel=1e-5)
    even = targets * torch.tensor([1.0, 0.0, 1.0])
    plain = float(in_batch_softmax(outputs, targets, correct_popularity=False, **options))
    assert plain == float(in_batch_softmax(outputs, even, **options)) != pytest.approx(expected, rel=1e-2)


def test_every_row_is_told_from_the_whole_batch_whoever_computes_it(
    alone: Ranks, pair: Ranks, trio: Ranks, settings: Settings, folder: str
):
    """One process, two ranks of ddp with sparse gradients, and two workers with a server follow one curve, a batch whose rows
    do not divide evenly among them, and validate to one recall over the catalogue."""
    (one,) = alone.run(curve, settings, f"{folder}/a", PLAIN)
    two = pair.run(curve, settings, f"{folder}/b", PLAIN.model_copy(update={"ranks": 2}))
    three = trio.run(curve, settings, f"{folder}/c", served(PLAIN))
    for losses, validation in (two[0], two[1], three[0]):
        assert losses == pytest.approx(one[0], rel=2e-5)
        assert validation["recall_at_10"] == one[1]["recall_at_10"]
        assert validation["loss"] == pytest.approx(one[1]["loss"], rel=2e-5)
    assert one[0][-1] < one[0][0]


def test_sparse_training_resumes_to_the_bit(alone: Ranks, pair: Ranks, settings: Settings, folder: str):
    """Stopped in mid-epoch on two ranks: the tables' averages and their count of steps come back; it has learned."""
    config = PLAIN.model_copy(update={"ranks": 2})
    pair.run(fitted, settings, f"{folder}/a", config, 8)
    resumed = pair.run(fitted, settings, f"{folder}/a", config)[0]
    unbroken = pair.run(fitted, settings, f"{folder}/b", config)[0]
    assert resumed[0] == unbroken[0]
    for name, weight in resumed[1].items():
        np.testing.assert_array_equal(weight, unbroken[1][name], err_msg=name)


@pytest.mark.soak
@pytest.mark.parametrize("change", ["adagrad", "sgd", "dense", "fsdp", "asynchronous"])
def test_other_ways_learn_the_same_task(
    alone: Ranks, pair: Ranks, trio: Ranks, settings: Settings, folder: str, change: str
):
    """Other optimizers of tables, whole gradients, shards, workers that go on alone; resumed to the bit where steps have an
    order."""
    dense = {"model": MODEL.model_copy(update={"sparse": False}), "max_epochs": 8}
    config = PLAIN.model_copy(update={"ranks": 2, "max_epochs": 8})
    group = pair
    if change in ("adagrad", "sgd"):
        rate = 0.1 if change == "adagrad" else 5.0
        config = config.model_copy(update={"optimizer": OptimizerConfig(name=change, learning_rate=rate)})
    elif change == "asynchronous":
        group = trio
        config = TrainConfig.model_validate(
            {**served(config).model_dump(), "parameter_server": {"mode": "asynchronous"}, "ema_decay": None}
        )
    else:
        config = config.model_copy(update=dense | ({"strategy": "fsdp"} if change == "fsdp" else {}))
    unbroken = group.run(fitted, settings, f"{folder}/b", config)[0]
    assert json.loads(unbroken[0])[-1]["recall_at_10"] > 0.75
    if change != "asynchronous":
        group.run(fitted, settings, f"{folder}/a", config, 20)
        resumed = group.run(fitted, settings, f"{folder}/a", config)[0]
        assert resumed[0] == unbroken[0]


def gradient_of_all(rows: int) -> Any:
    """The gradient of a loss over gathered rows, here and as one process has it."""
    rank, count = distributed.get_rank(), distributed.get_world_size()
    whole = torch.randn(rows, 2, 3, generator=torch.Generator().manual_seed(1))
    told = torch.stack([torch.arange(rows).float(), torch.zeros(rows), torch.ones(rows)], dim=1)
    mine = nn.Parameter(whole[rank::count].clone())
    in_batch_softmax(mine, told[rank::count], peers=Peers(rank, count), temperature=0.7).backward()
    alone = nn.Parameter(whole)
    in_batch_softmax(alone, told, peers=Peers(), temperature=0.7).backward()
    return mine.grad.numpy(), alone.grad[rank::count].numpy()


@pytest.mark.parametrize("rows", [7, 2])
def test_gradients_come_back_to_every_rank(trio: Ranks, rows: int):
    """What other ranks make of an item is a part of its gradient; a rank without rows takes part."""
    for found, expected in trio.run(gradient_of_all, rows):
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"strategy": "fsdp"}, "model.sparse needs whole tables, fsdp shards them: take ddp; or model.sparse: false"),
        (
            {"optimizer": {"name": "adamw"}},
            "model.sparse goes with optimizer adam, adagrad or plain sgd, not with adamw",
        ),
        ({"optimizer": {"name": "sgd", "momentum": 0.9}}, "not with sgd with momentum"),
        ({"optimizer": {"weight_decay": 0.1}}, "weight_decay moves every row of a table"),
        ({"clip_norm": 1.0}, "clip_norm needs whole gradients"),
        ({"init": {"keep_zeros": True}}, "init.keep_zeros needs whole gradients"),
    ],
)
def test_what_sparse_gradients_cannot_do_is_refused_by_the_config(options: dict[str, Any], words: str):
    """Each sentence names the way out; with whole gradients all of it goes."""
    with pytest.raises(ValidationError, match=words):
        TrainConfig.model_validate({"model": {"kind": "recommender"}, **options})
    TrainConfig.model_validate({"model": {"kind": "recommender", "sparse": False}, **options})


def test_clicks_become_two_sides_and_what_does_not_fit_is_said_before_a_rank_starts(catalog: Catalog, tmp_path: Any):
    """The transform reads a query, the target an item, its own name first; another network, passes that would cut the batch,
    strategies that keep rows apart and another metric are refused in a sentence."""
    ref = click_dataset(catalog, weight="times")
    dataset = Dataset.fetch(catalog, ref, tmp_path, ["test"])
    schema = dataset.target.items
    assert (dataset.transform.columns, schema.columns) == (["user", "age"], ["item", "genre", "price"])
    assert [bool(rows) for rows in dataset.transform.tables + schema.tables] == [True, False, True, True, False]
    inputs = schema.apply_columns({"item": ["i001", "new"], "genre": ["g1", "g1"], "price": [1.0, 2.0]})
    assert inputs[0, 0] > 0 == inputs[1, 0]
    model = {"model": {"kind": "recommender"}}
    for options, words in [
        ({}, "'mlp' is not for retrieval; take recommender"),
        ({**model, "accumulate": 2}, r"train\.accumulate: .*passes would cut it"),
        ({**model, "strategy": "diloco"}, "which diloco does not bring together; take ddp"),
        (
            {**model, "optimizer": {"name": "gd"}, "model": {"kind": "recommender", "sparse": False}},
            "gd takes all rows",
        ),
        ({**model, "stop": {"metric": "recall_at_5"}}, "did you mean|known"),
    ]:
        with pytest.raises(ConfigError, match=words):
            train(catalog, ref, TrainConfig.model_validate(options), Origin(), lambda _: pytest.fail("a rank started"))
    for changes, words in [
        ({"items": ["genre", "size"]}, "'size' is in items alone"),
        ({"items": ["user", "age", "genre", "price"]}, "features that tell about the query"),
        ({"task": "regression"}, "items and weight belong to task retrieval"),
    ]:
        with pytest.raises(ValidationError, match=words):
            click_dataset(catalog, **changes)
