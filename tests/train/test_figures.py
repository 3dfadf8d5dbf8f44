"""Figures that people watch: the course as a picture, utilisation, memory."""

from __future__ import annotations

import io
import itertools

import pytest
import torch

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Catalog, Origin
from modelyard.errors import ConfigError
from modelyard.models import GptConfig, MlpConfig
from modelyard.models.build import build_model
from modelyard.settings import Settings
from modelyard.storage import Store
from modelyard.train import HsdpConfig, OptimizerConfig, RankEvent, TrainConfig, train
from modelyard.train.assembly import RankSpec, assemble
from modelyard.train.costs import Costs, costs_of, try_out
from modelyard.train.memory import GB, Room, Weights, estimate_memory, free_memory, require_memory
from modelyard.train.plots import MAX_POINTS, Curves, training_figure
from tests.train import runs
from tests.train.ranks import Ranks


def told(kind: str, step: int, **values: float) -> RankEvent:
    return RankEvent.model_validate({"kind": kind, "step": step, "values": values})


def test_the_picture_shows_the_course_of_losses_and_rate():
    """Every reported step and validation is drawn where it was; steps that are made again are drawn once."""
    curves = Curves()
    assert not curves
    for step in range(10, 60, 10):
        curves.add(told("progress", step, loss=100.0 / step, learning_rate=0.01))
    curves.add(told("validation", 50, loss=3.0))
    curves.add(told("progress", 55))  # a sign of life
    curves.add(told("started", 30, resumed_steps=30.0))
    curves.add(told("progress", 40, loss=0.1, learning_rate=0.005))
    curves.add(told("validation", 50, loss=2.5))
    figure = training_figure(curves, "accuracy 0.9000 after 50 steps")
    losses, rate = figure.axes
    training, validation = losses.lines
    assert list(training.get_xdata()) == [10, 20, 30, 40]
    assert list(training.get_ydata()) == [10, 5, 100 / 30, 0.1]
    assert (list(validation.get_xdata()), list(validation.get_ydata())) == ([50], [2.5])
    assert list(rate.lines[0].get_ydata()) == [0.01, 0.01, 0.01, 0.005]
    assert losses.get_yscale() == "log"
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    assert picture.getvalue().startswith(b"\x89PNG")


def test_a_long_course_stays_a_small_picture():
    """However many steps report, a bounded number is kept, evenly spread to within a factor of two."""
    curves = Curves()
    for step in range(50_000):
        curves.add(told("progress", step, loss=1.0, learning_rate=0.1))
    steps = [point[0] for point in curves.steps]
    assert MAX_POINTS / 2 <= len(steps) <= MAX_POINTS
    assert steps[-1] > 49_000
    gaps = [after - before for before, after in itertools.pairwise(steps)]
    assert max(gaps) <= 2 * min(gaps)


@pytest.mark.parametrize(("model", "example", "forward"), [
    (MlpConfig(hidden_sizes=(32,), dropout=0.5), torch.zeros(2, 16), 2 * (16 * 32 + 32 * 4)),
    (GptConfig(kind="gpt", layers=1, width=16, heads=2, hidden=24), torch.zeros(2, 10, dtype=torch.int64),
     10 * 2 * (4 * 16 * 16 + 3 * 16 * 24 + 16 * 4) + 2 * 2 * 10 * 10 * 16),
])  # fmt: skip
def test_operations_are_counted(model: MlpConfig | GptConfig, example: torch.Tensor, forward: float):
    """Two for each weight and row (token), attention's own on top, three times that with the way back; counting moves
    no random stream. A network without values counts the same."""
    network = build_model(model, 16, 4)
    before = torch.get_rng_state()
    costs = costs_of(try_out(network, example), example, "bf16", runs.CPU)
    assert torch.equal(torch.get_rng_state(), before)
    assert network.training
    assert costs.flops_per_row == 3 * forward
    assert costs.peak_flops > 1e9
    with torch.device("meta"):
        empty = build_model(model, 16, 4)
    counted = costs_of(try_out(empty, example.to("meta")), example, "bf16", runs.CPU)
    assert counted.flops_per_row == 3 * forward
    assert counted.peak_flops > 1e9


def test_utilisation_is_work_done_over_work_possible():
    """Over all ranks; tokens are counted where rows are tokens."""
    numbers = Costs(flops_per_row=2e6, peak_flops=1e9, tokens_per_row=0)
    assert numbers.figures(100.0, 2) == {"mfu": pytest.approx(0.1)}
    assert Costs(flops_per_row=2e6, peak_flops=1e9, tokens_per_row=32).figures(100.0, 1)["tokens_per_second"] == 3200


def watched(settings: Settings, spec: RankSpec) -> list[RankEvent]:
    events: list[RankEvent] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("modelyard.train.loop.REPORT_SECONDS", 0.0)
        assemble(
            spec, Catalog(Store(settings)), runs.CPU, events.append, runs.local_rows(settings), counts_costs=True
        ).fit()
    return [event for event in events if event.kind == "progress" and event.values]


def test_a_rank_reports_utilisation_and_memory(
    alone: Ranks, settings: Settings, store: Store, dataset: ArtifactRef, config: TrainConfig, folder: str
):
    """Both are plausible: more than nothing, less than everything."""
    small = config.model_copy(update={"ranks": 1, "max_epochs": 1})
    spec = RankSpec(dataset=dataset, config=small, checkpoints=f"{store.root}/tests/{folder}")
    (events,) = alone.run(watched, settings, spec)
    assert all(0 < event.values["mfu"] < 1 for event in events)
    assert all(5e7 < event.values["memory_bytes"] < 1e11 for event in events)


@pytest.mark.parametrize(("update", "gigabytes"), [
    ({}, {"weights": 8, "gradients": 8, "optimizer": 16, "average": 0, "checkpoint": 24}),
    ({"strategy": "fsdp"}, {"weights": 4, "gradients": 4, "optimizer": 8, "average": 0, "checkpoint": 12}),
    ({"strategy": "fsdp", "nodes": "2:4"}, {"weights": 2, "gradients": 2, "optimizer": 4, "average": 0, "checkpoint": 6}),
    ({"strategy": "hsdp", "hsdp": HsdpConfig(shards=1)},
     {"weights": 8, "gradients": 8, "optimizer": 16, "average": 0, "checkpoint": 24}),
    ({"strategy": "parameter_server"}, {"weights": 8, "gradients": 8, "optimizer": 8, "average": 0, "checkpoint": 16}),
    ({"strategy": "diloco"}, {"weights": 8, "gradients": 8, "optimizer": 32, "average": 0, "checkpoint": 40}),
    ({"optimizer": OptimizerConfig(name="sgd"), "ema_decay": 0.9},
     {"weights": 8, "gradients": 8, "optimizer": 0, "average": 8, "checkpoint": 16}),
])  # fmt: skip
def test_memory_is_estimated_part_by_part(update: dict, gigabytes: dict[str, float]):
    """A billion weights on two ranks: copies under ddp, shares under fsdp, one optimizer state on a server, two more copies
    for outer steps, and what the optimizer keeps."""
    found = estimate_memory(TrainConfig().model_copy(update={"ranks": 2, **update}), 10**9)
    assert {name: getattr(found, name) / GB for name in gigabytes} == gigabytes
    assert found.total / GB == sum(gigabytes.values())


def test_memory_before_the_first_step_is_estimated():
    """A billion weights on eight ranks that shard: eight networks if each begins with a whole one, else one and the
    largest weight of each rank; the larger of beginning and training is what is needed."""
    plain = TrainConfig().model_copy(update={"ranks": 8, "strategy": "fsdp", "optimizer": OptimizerConfig(name="sgd")})
    whole, parts = estimate_memory(plain, 10**9), estimate_memory(plain, 10**9, 10**8)
    assert (whole.beginning / GB, whole.total / GB) == (32, 32)
    assert (parts.beginning / GB, parts.total / GB) == (pytest.approx(7.2), 12)
    assert estimate_memory(plain.model_copy(update={"strategy": "ddp"}), 10**9).beginning == 0
    with pytest.raises(
        ConfigError,
        match=r"about 32\.0 GB .*; before the first step 32\.0;.*; each rank begins with the whole network: so;",
    ):
        require_memory(plain, Weights(count=10**9, whole="so"), Room(host=20 * GB))
    require_memory(plain, Weights(count=10**9, largest=10**8), Room(host=20 * GB))


@pytest.mark.parametrize(("update", "weights", "room", "words"), [
    # 4 GB each of weights, gradients, and 8 of adam's state; a share of a checkpoint waits in the machine's memory
    ({}, {}, {"device": 15 * GB}, (r"8 ranks takes about 16\.0 GB on the device of each \(weights 4\.0, gradients 4\.0,"
     r" optimizer 8\.0; activations come on top\); 15\.0 GB are free on cuda:3; take a smaller network, fewer ranks,"
     r" train\.strategy fsdp")),
    ({}, {}, {"device": 17 * GB}, ""),
    ({}, {}, {"device": 17 * GB, "host": 90 * GB}, (r"about 96\.0 GB beside their devices \(building the network 32\.0, a"
     r" checkpoint being saved 96\.0\); 90\.0 GB are free here")),
    ({}, {}, {"device": 17 * GB, "host": 25 * GB, "ranks": 2}, ""),
    ({"strategy": "fsdp"}, {"whole": "so"}, {"device": 3 * GB}, (r"about 4\.0 GB on the device .*; before the first step"
     r" 4\.0; .*; each rank begins with the whole network: so; take a smaller network, more devices, an optimizer")),
    ({"strategy": "fsdp"}, {"largest": 10**8}, {"device": 3 * GB}, ""),
    ({}, {}, {"host": 100 * GB, "ranks": 4}, r"with 4 ranks on this machine takes about 112\.0 GB"),
    ({}, {}, {"host": 60 * GB, "ranks": 2}, ""),
])  # fmt: skip
def test_accelerators_and_other_machines_are_held_against_what_they_have(
    update: dict, weights: dict, room: dict, words: str
):
    """A billion weights on eight ranks: what each device needs, what the machine beside them, and of ranks that are spread
    over machines what those of one need."""
    config = TrainConfig().model_copy(update={"ranks": 8, **update})
    counted, free = Weights(count=10**9, **weights), Room(**{"host": 1000 * GB, "name": "cuda:3", **room})
    if not words:
        require_memory(config, counted, free)
        return
    with pytest.raises(ConfigError, match=words):
        require_memory(config, counted, free)


def refused(settings: Settings, spec: RankSpec) -> str:
    try:
        assemble(spec, Catalog(Store(settings)), runs.CPU, lambda _: None, runs.local_rows(settings))
    except ConfigError as refusal:
        return str(refusal)
    return ""


def test_ranks_look_where_the_launching_process_cannot(
    alone: Ranks, settings: Settings, store: Store, dataset: ArtifactRef, config: TrainConfig, folder: str
):
    """A rank on a node of Ray refuses a network that its machine cannot hold, before it builds it."""
    huge = config.model_copy(update={"ranks": 1, "launcher": "ray", "model": MlpConfig(hidden_sizes=(10**6, 10**6))})
    spec = RankSpec(dataset=dataset, config=huge, checkpoints=f"{store.root}/tests/{folder}")
    (sentence,) = alone.run(refused, settings, spec)
    assert "weights with 1 ranks on this machine takes about 28,002.1 GB" in sentence


def test_a_network_that_cannot_fit_starts_no_rank(catalog: Catalog, dataset: ArtifactRef, config: TrainConfig):
    """The sentence has the estimate in parts, what is free here, and what to change."""
    huge = config.model_copy(update={"model": MlpConfig(hidden_sizes=(1_000_000, 1_000_000))})
    words = (
        r"train\.model: training 1,000,076,000,010 weights with 2 ranks takes about 56,004\.3 GB \(weights 8,000\.6,"
        r" gradients .*\); [\d,.]+ GB are free here; take a smaller network, fewer ranks, train\.strategy fsdp"
    )
    with pytest.raises(ConfigError, match=words):
        train(catalog, dataset, huge, Origin(), lambda event: pytest.fail(f"a rank was started: {event}"))
    assert 1e8 < free_memory() < 1e14
