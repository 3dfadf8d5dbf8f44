"""What ends a training, and what happens when its loss is lost."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from modelyard.errors import NonFiniteLoss, TargetNotReached
from modelyard.settings import Settings
from modelyard.train import CheckpointConfig, OptimizerConfig, RankEvent, StopConfig, TrainConfig
from modelyard.train.progress import Progress
from modelyard.train.stop import reason
from tests.train import runs
from tests.train.ranks import Ranks
from tests.train.test_resume import FULL, assert_same

FAST = runs.PLAIN.model_copy(update={"optimizer": OptimizerConfig(learning_rate=0.01), "max_epochs": 30})


def ended(settings: Settings, folder: str, config: TrainConfig) -> Progress:
    return runs.trainer(settings, folder, config, objective=runs.classifier(config.stop.metric or "accuracy")).fit()


@pytest.mark.parametrize(
    ("update", "rule"),
    [
        ({"target": 0.8}, "target"),
        ({"target": 0.5, "stop": StopConfig(metric="loss")}, "target"),
        ({"stop": StopConfig(patience=2)}, "stop.patience"),
        ({"stop": StopConfig(max_steps=17)}, "stop.max_steps"),
        ({"stop": StopConfig(max_seconds=1e-6)}, "stop.max_seconds"),
        ({"max_epochs": 2}, "max_epochs"),
    ],
    ids=["accuracy", "loss", "patience", "steps", "seconds", "epochs"],
)
def test_every_rule_ends_training_and_is_recorded(
    pair: Ranks, settings: Settings, folder: str, update: dict[str, Any], rule: str
):
    """All ranks end after the same step, with a validation there; the rule is named, and it was that rule."""
    one, two = pair.run(ended, settings, folder, FAST.model_copy(update={**update, "ranks": 2}))
    assert one.stopped_by == two.stopped_by == rule
    assert one.step == two.step == one.validations[-1]["step"]
    match rule:
        case "stop.max_steps":
            assert one.step == 17
        case "stop.max_seconds":
            assert one.step < 12
        case "stop.patience":
            assert one.best == len(one.validations) - 3
        case "max_epochs":
            assert one.step == 24
        case _:
            assert one.best == len(one.validations) - 1
            assert one.step < 30 * 12


def test_the_metric_decides_which_direction_is_better():
    """For a loss less is better, for accuracy more; the target follows."""
    for metric, target, met in [("loss", 0.5, True), ("loss", 0.2, False), ("accuracy", 0.5, True)]:
        progress = Progress()
        progress.remember({"loss": 0.3, "accuracy": 0.7}, metric)
        progress.remember({"loss": 0.9, "accuracy": 0.1}, metric)
        assert progress.best == 0
        config = TrainConfig(target=target, stop=StopConfig(metric=metric))
        assert (reason(config, metric, progress, 10) == "target") == met


def missed(settings: Settings, folder: str, config: TrainConfig) -> str:
    with pytest.raises(TargetNotReached) as caught:
        ended(settings, folder, config)
    return str(caught.value)


def test_missed_target_names_the_limit_that_came_first(alone: Ranks, settings: Settings, folder: str):
    """How far it got, where, and which limit ended it."""
    config = FAST.model_copy(update={"target": 0.9999, "stop": StopConfig(max_steps=5)})
    (sentence,) = alone.run(missed, settings, folder, config)
    assert "accuracy reached 0." in sentence
    assert "within train.stop.max_steps=5; train.target is 0.9999" in sentence


# -- a lost loss --------------------------------------------------------------------------------------


def with_a_glitch(
    settings: Settings, folder: str, config: TrainConfig, at_step: int, times: int
) -> tuple[Any, list[RankEvent]]:
    """Train while a weight turns into NaN after a step, as many times as said: as a fault of the machine would."""
    events: list[RankEvent] = []
    made = runs.trainer(settings, folder, config, events.append)
    step, left = made.stepper.step, times

    def faulty(*arguments: Any) -> torch.Tensor:
        nonlocal left
        loss = step(*arguments)
        if arguments[2] + 1 == at_step and left:
            left -= 1
            with torch.no_grad():
                next(made.stepper.network.parameters()).mul_(math.nan)
        return loss

    made.stepper.step = faulty  # ty: ignore[invalid-assignment]
    progress = made.fit()
    return (progress.validations, {name: value.numpy() for name, value in runs.weights(made).items()}), events


@pytest.mark.parametrize(("at_step", "back_to"), [(7, 0), (30, 24), (24, 20), (20, 12)])
def test_lost_loss_goes_back_to_the_last_good_checkpoint(
    alone: Ranks, settings: Settings, folder: str, at_step: int, back_to: int
):
    """Before the first checkpoint to the beginning, later to the last one, and never to one with NaN in its weights; what
    comes of it is what an undisturbed run gives."""
    every = CheckpointConfig(every_steps=10)
    config = FULL.model_copy(update={"checkpoint": every if at_step != 30 else CheckpointConfig()})
    ((product, events),) = alone.run(with_a_glitch, settings, f"{folder}/a", config, at_step, 1)
    (unbroken,) = alone.run(runs.fitted, settings, f"{folder}/b", config)
    (warning,) = [event.message for event in events if event.kind == "warning"]
    assert f"going back to step {back_to}, once" in warning
    assert_same(product, unbroken)


def twice_lost(settings: Settings, folder: str, config: TrainConfig) -> str:
    with pytest.raises(NonFiniteLoss) as caught:
        with_a_glitch(settings, folder, config, 16, 2)
    return str(caught.value)


def test_loss_that_is_lost_again_ends_training(alone: Ranks, settings: Settings, folder: str):
    """The second time it fails, with the very step, the digest of its rows and the gradient norm."""
    (sentence,) = alone.run(twice_lost, settings, folder, FULL)
    assert "at step 17, epoch 2 (batch " in sentence
    assert "gradient norm nan" in sentence
    assert "train.optimizer.learning_rate (now 0.01)" in sentence


def diverging(settings: Settings, folder: str, config: TrainConfig) -> str:
    with pytest.raises(NonFiniteLoss) as caught:
        runs.trainer(settings, folder, config).fit()
    return str(caught.value)


def test_loss_above_its_bound_counts_as_lost(alone: Ranks, settings: Settings, folder: str):
    """A loss may be finite and hopeless all the same, if the config says from where on."""
    wild = FULL.model_copy(
        update={"optimizer": OptimizerConfig(name="sgd", learning_rate=50), "stop": StopConfig(diverged_above=20.0)}
    )
    (sentence,) = alone.run(diverging, settings, folder, wild)
    assert "NaN, infinite or larger than 20" in sentence


# -- figures on the way -------------------------------------------------------------------------------


def reports(settings: Settings, folder: str, config: TrainConfig) -> list[RankEvent]:
    events: list[RankEvent] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("modelyard.train.loop.REPORT_SECONDS", 0.0)
        runs.trainer(settings, folder, config, events.append).fit()
    said = [event for event in events if event.kind == "progress"]
    assert not said or (said[0].step, said[0].values) == (1, {}) or config.strategy == "parameter_server"
    return [event for event in said if event.values]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_steps_report_their_figures(pair: Ranks, settings: Settings, folder: str, strategy: str):
    """The first step is told at once; then loss, rate, gradient norm, rows a second, and what was waited for, with memory and
    processor time of each rank; rank 0 tells, all finite."""
    config = FULL.model_copy(update={"strategy": strategy, "ranks": 2})
    told, silent = pair.run(reports, settings, folder, config)
    assert not silent
    names = {
        "loss",
        "rows_per_second",
        "gradient_norm",
        "learning_rate",
        "data_wait_fraction",
        "checkpoint_stall_seconds",
        "memory_bytes",
    }
    names |= {
        f"rank_{rank}/{name}" for rank in (0, 1) for name in ("memory_bytes", "data_wait_fraction", "cpu_fraction")
    }
    assert all(set(event.values) == names for event in told)
    memory = [told[-1].values[f"rank_{rank}/memory_bytes"] for rank in (0, 1)]
    assert memory[0] == told[-1].values["memory_bytes"] != memory[1]
    assert all(np.isfinite(list(event.values.values())).all() for event in told)
    assert 0 < told[-1].values["learning_rate"] < 0.01
    assert told[-1].values["gradient_norm"] > 0


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "parameter_server"])
def test_the_gradient_norm_is_that_before_clipping(pair: Ranks, settings: Settings, folder: str, strategy: str):
    """Clipping to next to nothing hides neither the size of a gradient nor that it explodes."""
    config = FULL.model_copy(update={"strategy": strategy, "ranks": 2, "max_epochs": 1, "clip_norm": 1e-4})
    told, _ = pair.run(reports, settings, folder, config)
    assert min(event.values["gradient_norm"] for event in told) > 100 * config.clip_norm
