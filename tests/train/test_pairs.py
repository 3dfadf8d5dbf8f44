"""Networks whose rows are pairs: what is learned does not depend on who computes it."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import distributed, nn

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Catalog, Origin
from modelyard.datasets import Dataset
from modelyard.errors import ConfigError, Preempted
from modelyard.models import ModelSpec, RecommenderConfig
from modelyard.models.build import build_model, load_model
from modelyard.retrieval import RetrievalMetrics
from modelyard.settings import Settings
from modelyard.train import DistillConfig, OptimizerConfig, TrainConfig, train
from modelyard.train.contrast import Peers, Scoring, in_batch_softmax, pair_loss, similarities
from modelyard.train.distillation import Teacher, lesson_of
from modelyard.train.loop import Trainer
from modelyard.train.pair_rows import Pairs, item_pairs
from modelyard.train.precision import Precision
from modelyard.train.requirements import require_trainable
from modelyard.train.rows import Split
from modelyard.train.starting import Parent, Parents
from modelyard.train.validation import Objective, validate
from modelyard.transform import FeatureScale, FittedTransform
from tests.clickbench import click_dataset, clicks
from tests.train import runs
from tests.train.ranks import Ranks

USERS, ITEMS = 30, 20
MODEL = RecommenderConfig(
    kind="recommender", vector_width=8, embedding_width=4, hidden_sizes=(8,),
    query_tables=(USERS + 1, 0), item_tables=(ITEMS + 1,),
)  # fmt: skip
WIDE = {"kind": "recommender", "vector_width": 16, "hidden_sizes": [32]}
OTHER = {"train": 0.8, "validation": 0.1, "test": 0.1}
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


def trainer(
    settings: Settings, folder: str, config: TrainConfig, rows: Any = None, network: nn.Module | None = None
) -> Trainer:
    torch.manual_seed(config.seed)
    objective = Objective(
        loss="in_batch_softmax",
        metric="recall_at_10",
        new_metric=RetrievalMetrics,
        temperature=config.pairs.temperature,
    )
    network = network or build_model(config.model, 2, MODEL.vector_width)
    rows = rows or meetings(100, 0)
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
    scoring = Scoring(peers=Peers(), temperature=0.5)
    assert float(in_batch_softmax(outputs, targets, scoring)) == pytest.approx(expected, rel=1e-5)
    even = targets * torch.tensor([1.0, 0.0, 1.0])
    plain = float(in_batch_softmax(outputs, targets, replace(scoring, correct_popularity=False)))
    assert plain == float(in_batch_softmax(outputs, even, scoring)) != pytest.approx(expected, rel=1e-2)


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


def test_a_student_comes_near_to_its_teacher(alone: Ranks, settings: Settings, folder: str):
    """A narrower one, on rows of neither, by what it was told to believe: the teacher, or labels that mean nothing."""
    quick = {"max_epochs": 10, "checkpoint_every_epochs": 10, "optimizer": OptimizerConfig(learning_rate=0.05)}
    config = PLAIN.model_copy(update=quick)
    ((before, after), (_, untaught)) = alone.run(taught, settings, folder, config, [1.0, 1e-3])[0]
    assert after > 0.8
    assert max(before, untaught) < 0.3


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


def gradient_of_all(rows: int, loss: str, *, of_teacher: bool) -> Any:
    """A loss over gathered rows, against labels or a wider teacher, and its gradient: here, and as one process has it."""
    rank, count = distributed.get_rank(), distributed.get_world_size()
    draw = torch.Generator().manual_seed(1)
    whole, its = (torch.randn(rows, 2, width, generator=draw) for width in (3, 5))
    told = torch.stack([torch.arange(rows).float(), -torch.rand(rows, generator=draw), torch.ones(rows)], dim=1)
    found = []
    for own, peers in [(slice(rank, None, count), Peers(rank, count)), (slice(None), Peers())]:
        mine, wanted = nn.Parameter(whole[own].clone()), told[own]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Peers, "of", lambda _, peers=peers: peers)
            learned, lesson = pair_loss(loss, PLAIN), lesson_of(loss, PLAIN)
        summed = lesson(mine, its[own], wanted) if of_teacher else learned(mine, wanted)
        summed.backward()
        found.append((summed.detach(), mine.grad))
    (part, gradient), (expected, whole_gradient) = found
    distributed.all_reduce(part)
    return float(part), float(expected), gradient.numpy(), whole_gradient[rank::count].numpy()


@pytest.mark.parametrize("rows", [7, 2])
@pytest.mark.parametrize(
    ("loss", "of_teacher"),
    [("in_batch_softmax", False), ("in_batch_softmax", True), ("contrastive", True), ("cosine_error", True)],
)
def test_gradients_come_back_to_every_rank(trio: Ranks, rows: int, loss: str, of_teacher: bool):
    """What other ranks make of an item is a part of its gradient; a rank without rows takes part. What is learned of a teacher
    does not depend on the ranks either."""
    for part, whole, found, expected in trio.run(partial(gradient_of_all, of_teacher=of_teacher), rows, loss):
        assert part == pytest.approx(whole, rel=1e-5)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def taught(settings: Settings, folder: str, config: TrainConfig, weights: list[float]) -> list[tuple[float, float]]:
    """Train students on wrong items beside a teacher of the right ones that makes wider vectors, by the weight of what it
    says. The correlation of what both hold of queries and items that neither saw, before and after."""
    rows, (seen, *_) = meetings(300, 0), meetings(100, 1).batch(torch.arange(100))
    teacher = trainer(settings, f"{folder}/teacher", config, rows)
    teacher.fit()
    features, targets, _ = rows.batch(torch.arange(300))
    wrong = targets.numpy()[np.random.default_rng(0).permutation(300)]
    items = np.column_stack([features.numpy()[:, :2], wrong[:, :1] + 1])
    mixed = Pairs(rows=Split.of(items, wrong), catalogue=rows.catalogue)

    def nearness(student: nn.Module) -> float:
        with torch.no_grad():
            held = [similarities(one(seen), Peers(), cosine=False) for one in (student, teacher.stepper.network)]
        return float(np.corrcoef(*(one.flatten().numpy() for one in held))[0, 1])

    found = []
    for weight in weights:
        learns = config.model_copy(update={"distill": DistillConfig(weight=weight)})
        torch.manual_seed(0)
        student = build_model(MODEL.model_copy(update={"vector_width": 6, "hidden_sizes": (16,)}), 2, 6)
        made = trainer(settings, f"{folder}/{weight}", learns, mixed, student)
        made.stepper._teacher = Teacher(
            teacher.stepper.network, runs.CPU, learns.distill,
            lesson=lesson_of("in_batch_softmax", learns), precision=Precision("fp32", runs.CPU),
        )  # fmt: skip
        before = nearness(student)
        made.fit()
        found.append((before, nearness(student)))
    return found


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


@pytest.mark.soak
@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "parameter_server"])
def test_a_smaller_shop_comes_near_to_its_teacher(catalog: Catalog, tmp_path: Any, strategy: str):
    """Through torch's launcher, several ranks: a student of narrower vectors scores queries and items of the validation split
    as its teacher, whose tables are those of other rows, does, and one without does less; the towers' layers as well."""
    rows = clicks(1500)
    shop, other = click_dataset(catalog, rows), click_dataset(catalog, rows.iloc[:1200], split=OTHER)
    teaches = {"optimizer": {"learning_rate": 0.02}, "max_epochs": 15, "ranks": 2}
    teacher = train(catalog, other, TrainConfig.model_validate({"model": WIDE, **teaches}), Origin()).ref
    dataset = Dataset.fetch(catalog, shop, tmp_path / "shop", [])
    frame = next(dataset.fetched_frames(catalog, shop, "validation"))

    def scores(ref: ArtifactRef) -> np.ndarray:
        catalog.fetch(ref, tmp_path / ref.digest)
        own = Dataset.fetch(catalog, other if ref == teacher else shop, tmp_path / f"{ref.digest}-data", [])
        assert own.target.items is not None
        sides = [own.transform.apply(own.transform.rows(frame)), own.target.items.apply_frame(frame)]
        with torch.no_grad():
            vectors = load_model(tmp_path / ref.digest)(torch.from_numpy(np.concatenate(sides, axis=1)))
        return (vectors[:, 0] @ vectors[:, 1].T).flatten().numpy()

    towers = {f"{tower}.head.layers.0": f"{tower}.head.layers.0" for tower in ("queries", "items")}
    lessons = [{"weight": 1.0}, {"weight": 1.0, "hidden": {"layers": towers}}]
    model = {**WIDE, "vector_width": 8, "hidden_sizes": [12], "sparse": strategy == "ddp"}
    served = {"ranks": 3} if strategy == "parameter_server" else {}

    def nearness(distill: dict[str, Any], taught_by: ArtifactRef | None) -> float:
        config = {"model": model, "strategy": strategy, "distill": distill, **teaches, **served}
        made = train(catalog, shop, TrainConfig.model_validate(config), Origin(), teacher=taught_by).ref
        return float(np.corrcoef(scores(made), scores(teacher))[0, 1])

    untaught = nearness({}, None)
    for distill in lessons[:1] if served else lessons:
        taught = nearness(distill, teacher)
        print(strategy, distill, "taught", taught, "untaught", untaught)
        assert taught > untaught + 0.05


def test_a_teacher_of_clicks_sees_them_as_its_own_transforms_make_them(
    catalog: Catalog, settings: Settings, tmp_path: Any
):
    """Queries and items by the tables it was trained with, of the training rows alone; one of the same data set shares the
    student's inputs. One of other columns of items, and layers that are only counted, start no rank."""
    ref = click_dataset(catalog)
    dataset = Dataset.fetch(catalog, ref, tmp_path, [])
    spec = ModelSpec(model=MODEL, input_width=2, output_width=8)
    same = Parent(field="train.distill.teacher", ref=ref, spec=spec, transform=dataset.transform, target=dataset.target)
    half = dataset.target.items.model_copy(
        update={"features": [*dataset.target.items.features[:2], FeatureScale(name="price", offset=0.0, scale=0.5)]}
    )
    other = replace(same, target=dataset.target.model_copy(update={"items": half}))
    rows = runs.local_rows(settings)
    shared, own = (item_pairs(catalog, ref, dataset, rows, teacher) for teacher in (same, other))
    assert shared[0].batch(torch.arange(2)).teacher_features is None is own[1].batch(torch.arange(2)).teacher_features
    features, _, seen = own[0].batch(torch.arange(20))
    price = next(dataset.fetched_frames(catalog, ref, "train"))["price"][:20]
    np.testing.assert_array_equal(seen[:, :-1], features[:, :-1])
    np.testing.assert_allclose(seen[:, -1], price / 0.5, rtol=1e-5)

    fewer = FittedTransform(features=half.features[:2])
    stranger = replace(same, target=dataset.target.model_copy(update={"items": fewer}))
    for teacher, hidden, words in [
        (stranger, None, r"other columns of items: its \(none\) against the data set's price"),
        (same, {"layers": 1}, r"train\.distill\.hidden\.layers: two towers have no one order of layers"),
        (same, {"layers": {"queries.head.layers.0": "queries.head.layer.0"}}, "did you mean queries.head.layers.0"),
    ]:
        config = TrainConfig.model_validate({"model": {"kind": "recommender"}, "distill": {"hidden": hidden}})
        with pytest.raises(ConfigError, match=words):
            require_trainable(catalog, ref, config, Parents(teacher=teacher))
