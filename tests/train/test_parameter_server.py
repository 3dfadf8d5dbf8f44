"""Ranks that hold the weights and ranks that work for them."""

from __future__ import annotations

import os
import random
import signal
import time
from typing import Any

import psutil
import pytest
import torch
from pydantic import ValidationError

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Catalog, Origin
from modelyard.errors import ConfigError
from modelyard.models import MlpConfig
from modelyard.settings import Settings
from modelyard.storage import Store
from modelyard.train import OptimizerConfig, ParameterServerConfig, RankEvent, TrainConfig, train
from modelyard.train.holdings import deal
from modelyard.train.parameter_server import ServerStepper
from modelyard.train.step_queue import StepQueue
from tests.train import runs
from tests.train.conftest import make_dataset
from tests.train.ranks import Ranks
from tests.train.test_parallelize import PLAIN, STEPS
from tests.train.test_resume import FULL, assert_same, interrupted
from tests.train.test_stage import is_rank


def served(config: TrainConfig, **options: Any) -> TrainConfig:
    """The config on three ranks, some of them servers."""
    update = {"strategy": "parameter_server", "ranks": 3, "parameter_server": ParameterServerConfig(**options)}
    return config.model_copy(update=update)


@pytest.mark.parametrize("servers", [1, 2])
def test_synchronous_workers_follow_the_loss_curve_of_one_process(
    alone: Ranks, trio: Ranks, settings: Settings, folder: str, servers: int
):
    """Two workers with one server, one worker with two: each step's gradient is the mean over the global batch, clipped by
    the norm over all servers."""
    (one,) = alone.run(runs.loss_curve, settings, f"{folder}/a", PLAIN, STEPS)
    curves = trio.run(runs.loss_curve, settings, f"{folder}/b", served(PLAIN, servers=servers), STEPS)
    assert curves[0] == curves[1] == curves[2]
    assert curves[0] == pytest.approx(one, rel=2e-5)


@pytest.mark.parametrize(
    ("servers", "optimizer"), [(1, "adamw"), pytest.param(2, "muon", marks=pytest.mark.soak)], ids=["one", "two"]
)
def test_synchronous_training_resumes_to_the_bit(
    trio: Ranks, settings: Settings, folder: str, servers: int, optimizer: str
):
    """Stopped in mid-epoch: servers find their optimizer's state, averages and weights, workers their random streams."""
    own = OptimizerConfig(name=optimizer, learning_rate=0.01)
    config = served(FULL.model_copy(update={"optimizer": own}), servers=servers)
    assert {step for step, _ in trio.run(interrupted, settings, f"{folder}/a", config, 17)} == {17}
    resumed = trio.run(runs.fitted, settings, f"{folder}/a", config)[0]
    assert_same(resumed, trio.run(runs.fitted, settings, f"{folder}/b", config)[0])


@pytest.mark.soak
def test_other_strategies_go_on_with_what_servers_saved(
    alone: Ranks, pair: Ranks, trio: Ranks, settings: Settings, folder: str
):
    """One process, then two servers, one server, and shards: the same order of rows, losses within 1e-3 of undisturbed."""
    config = FULL.model_copy(update={"model": MlpConfig(hidden_sizes=(16,), dropout=0.0)})
    alone.run(interrupted, settings, f"{folder}/a", config, 5)
    trio.run(interrupted, settings, f"{folder}/a", served(config, servers=2), 14)
    trio.run(interrupted, settings, f"{folder}/a", served(config), 20)
    resumed, _ = pair.run(
        runs.fitted, settings, f"{folder}/a", config.model_copy(update={"ranks": 2, "strategy": "fsdp"})
    )[0]
    ((unbroken, _),) = alone.run(runs.fitted, settings, f"{folder}/b", config)
    for mine, theirs in zip(resumed, unbroken, strict=True):
        assert mine["step"] == theirs["step"]
        assert mine["train_loss"] == pytest.approx(theirs["train_loss"], abs=1e-3)
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-3)


def vectors_received(settings: Settings, folder: str, config: TrainConfig) -> int:
    """Of weights by a worker, of gradients by a server, in a whole training."""
    made = runs.trainer(settings, folder, config)
    channel = getattr(made.stepper, "_messages")  # noqa: B009 - of those that serve or are served
    values, count = channel.values, 0

    def counted(*arguments: Any) -> torch.Tensor:
        nonlocal count
        count += 1
        return values(*arguments)

    channel.values = counted
    made.fit()
    return count


def test_workers_are_sent_only_weights_that_they_do_not_have(trio: Ranks, settings: Settings, folder: str):
    """In two epochs of ten steps: each step's, but for the one after the validation, which gave all of them the newest."""
    config = served(PLAIN.model_copy(update={"max_epochs": 2}))
    assert trio.run(vectors_received, settings, folder, config) == [19, 19, 40]


# -- asynchronously -----------------------------------------------------------------------------------


def ran_ahead(settings: Settings, folder: str, config: TrainConfig, slow_rank: int = -1) -> dict[str, Any]:
    """A whole training; one rank may take its time over each batch."""
    made = runs.trainer(settings, folder, config)
    own_rows = 0
    accumulate = made.stepper._accumulate

    def slowly(split: Any, rows: torch.Tensor, *rest: Any) -> torch.Tensor:
        nonlocal own_rows
        own_rows += len(rows)
        time.sleep(0.2 if made.stepper.rank == slow_rank else 0)  # far more than a step takes on a busy machine
        return accumulate(split, rows, *rest)

    made.stepper._accumulate = slowly  # ty: ignore[invalid-assignment]
    validations = made.fit().validations
    stalest = made.stepper.stalest if isinstance(made.stepper, ServerStepper) else 0
    return {"validations": validations, "rows": own_rows, "stalest": stalest}


@pytest.mark.parametrize("servers", [1, 2])
def test_without_staleness_asynchronous_workers_take_turns(
    alone: Ranks, trio: Ranks, settings: Settings, folder: str, servers: int
):
    """Nobody begins on weights that another is about to change: the course of one process, whoever makes a step."""
    plain = PLAIN.model_copy(update={"max_epochs": 2})
    config = served(plain, servers=servers, mode="asynchronous", staleness=0)
    found = trio.run(ran_ahead, settings, f"{folder}/a", config)
    (one,) = alone.run(ran_ahead, settings, f"{folder}/b", plain)
    assert max(rank["stalest"] for rank in found) == 0
    assert sum(rank["rows"] for rank in found) == one["rows"] == 2 * runs.ROWS
    for mine, theirs in zip(found[0]["validations"], one["validations"], strict=True):
        assert mine == pytest.approx(theirs, rel=2e-5)


@pytest.mark.soak
def test_a_slow_worker_holds_nobody_up_beyond_the_bound(trio: Ranks, settings: Settings, folder: str):
    """The other makes most of the steps; no gradient is older than the bound, some are old; and what comes of it is as
    good as one process's within the interval that the documentation states."""
    plain = PLAIN.model_copy(update={"max_epochs": 6})
    config = served(plain, mode="asynchronous", staleness=5)
    fast, slow, server = trio.run(ran_ahead, settings, f"{folder}/a", config, 1)
    assert fast["rows"] + slow["rows"] == 6 * runs.ROWS
    assert fast["rows"] > 2 * slow["rows"] > 0
    assert 0 < server["stalest"] <= 5
    last = fast["validations"][-1]
    assert (last["step"], last["epoch"]) == (60, 6)
    assert last["accuracy"] > 0.9


def test_the_queue_keeps_every_gradient_within_the_bound():
    """Whoever finishes when: each step is given out once, no update comes later than the bound, and somebody can always
    go on."""
    draw = random.Random(0)
    for _ in range(300):
        staleness, workers, total = draw.randrange(6), draw.randrange(1, 6), draw.randrange(1, 40)
        queue, version, begun, seen = StepQueue(list(range(total)), staleness, 0), 0, dict[int, int](), []
        for worker in range(workers):
            queue.ask(worker)
        num_told = 0
        while num_told < workers:
            for worker, number in queue.granted():
                num_told += number is None
                if number is not None:
                    begun[worker] = version
                    seen.append(number)
            if begun:
                worker = draw.choice(sorted(begun))
                assert version - begun.pop(worker) <= staleness
                version += 1
                queue.done(worker, version)
                queue.ask(worker)
            else:
                assert num_told == workers
        assert seen == list(range(total))


def test_parameters_are_dealt_out_evenly():
    """Each to one server, the largest first to whom has least, and alike wherever it is computed."""
    assert deal([100, 1, 60, 50, 2], 2) == [[0, 1, 4], [2, 3]]
    dealt = deal([5, 5, 5, 5], 4)
    assert sorted(number for one in dealt for number in one) == [0, 1, 2, 3]
    assert all(dealt)


# -- killed -------------------------------------------------------------------------------------------


@pytest.mark.soak
@pytest.mark.parametrize("mode", ["synchronous", "asynchronous"])
def test_training_outlives_a_killed_server_and_a_killed_worker(
    settings: Settings, catalog: Catalog, dataset: ArtifactRef, config: TrainConfig, mode: str
):
    """The launcher restarts the group each time and it goes on from the newest checkpoint; synchronously to the very digest
    that an undisturbed run publishes in another bucket."""
    seeded = config.model_copy(update={"seed": 11, "batch_size": 16, "max_epochs": 4})
    work = served(seeded, mode=mode)
    victims, num_started = ["2", "1"], 0  # ranks: the server, then a worker

    def kill_each_once(event: RankEvent) -> None:
        nonlocal num_started
        num_started += event.kind == "started"
        if event.kind == "checkpoint" and victims and num_started + len(victims) == 3:
            ranks = [child for child in psutil.Process().children(recursive=True) if is_rank(child)]
            chosen = next(rank for rank in ranks if rank.environ()["RANK"] == victims[0])
            os.kill(chosen.pid, signal.SIGKILL)
            victims.pop(0)

    product = train(catalog, dataset, work, Origin(), kill_each_once)
    assert (num_started, victims) == (3, [])
    assert product.manifest.content.facts["epochs"] == 4
    assert product.manifest.content.facts["metrics"]["accuracy"] > 0.85
    if mode == "synchronous":
        elsewhere = Catalog(Store(settings.model_copy(update={"bucket": "modelyard-undisturbed"})))
        elsewhere.store.control.create_bucket()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MODELYARD_BUCKET", "modelyard-undisturbed")
            calm = train(elsewhere, make_dataset(elsewhere), work, Origin())
        assert not calm.reused
        assert calm.ref.digest == product.ref.digest


# -- what is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "words"), [
    ({"servers": 3}, r"parameter_server\.servers 3 of ranks 3 leave no worker: take more ranks or fewer servers"),
    ({"servers": 0}, r"servers(.|\n)*greater than or equal to 1"),
    ({"staleness": -1}, r"staleness(.|\n)*greater than or equal to 0"),
    ({"mode": "asynchron"}, r"'asynchron' is not known; did you mean 'asynchronous'\? There are synchronous, asynchronous"),
    ({"workers": 2}, r"workers(.|\n)*Extra inputs are not permitted"),
])  # fmt: skip
def test_what_cannot_be_served_is_refused_by_the_config(options: dict[str, Any], words: str):
    """With the sentence that says what to write instead."""
    with pytest.raises(ValidationError, match=words):
        TrainConfig.model_validate({"strategy": "parameter_server", "ranks": 3, "parameter_server": options})
    with pytest.raises(ValidationError, match="take bf16, or ddp"):
        TrainConfig.model_validate({"strategy": "parameter_server", "precision": "fp16"})


def test_more_servers_than_parameters_start_no_rank(catalog: Catalog, dataset: ArtifactRef, config: TrainConfig):
    """The network decides: said before a process starts, with how many it has."""
    many = served(config, servers=5).model_copy(update={"ranks": 6})
    events: list[RankEvent] = []
    with pytest.raises(ConfigError, match=r"train\.parameter_server\.servers: 5 servers for a network of 4 parameters"):
        train(catalog, dataset, many, Origin(), events.append)
    assert not events
