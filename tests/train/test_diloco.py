"""Ranks that train by themselves between outer steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from modelyard.models import MlpConfig
from modelyard.settings import Settings
from modelyard.train import DilocoConfig, OptimizerConfig, TrainConfig
from modelyard.train.diloco import DilocoStepper
from tests.train import runs
from tests.train.ranks import Ranks
from tests.train.test_parallelize import PLAIN
from tests.train.test_resume import FULL, assert_same, interrupted

EVEN = PLAIN.model_copy(
    update={"batch_size": 10, "optimizer": OptimizerConfig(name="sgd", learning_rate=0.1), "clip_norm": 0}
)


def apart(config: TrainConfig, **options: Any) -> TrainConfig:
    """The config on two ranks that train by themselves."""
    return config.model_copy(update={"strategy": "diloco", "ranks": 2, "diloco": DilocoConfig(**options)})


def test_an_outer_step_each_step_is_plain_gradient_descent(alone: Ranks, pair: Ranks, settings: Settings, folder: str):
    """Without momentum and with rate 1 the mean of the ranks' ways is one step on the global batch: the same curve."""
    config = apart(EVEN, every_steps=1, learning_rate=1, momentum=0)
    (one,) = alone.run(runs.loss_curve, settings, f"{folder}/a", EVEN, 18)
    two, again = pair.run(runs.loss_curve, settings, f"{folder}/b", config, 18)
    assert two == again
    assert two == pytest.approx(one, rel=2e-5)


def rounds(settings: Settings, folder: str, config: TrainConfig, steps: int) -> list[dict[str, np.ndarray]]:
    """The weights of this rank after each step, and before the first."""
    made = runs.trainer(settings, folder, config)
    found = []
    for _ in range(steps + 1):
        found.append({name: value.numpy() for name, value in runs.weights(made).items()})
        made._train_steps()
    return found


def test_outer_steps_are_sgd_with_nesterovs_momentum_on_the_mean_way(pair: Ranks, settings: Settings, folder: str):
    """Within a round ranks part; at its end both are where NumPy's outer step puts them, from where a
    longer round shows that each had come."""
    config = apart(EVEN, every_steps=4, learning_rate=0.7, momentum=0.9)
    one, two = pair.run(rounds, settings, f"{folder}/a", config, 8)
    longer = apart(EVEN, every_steps=100)
    mine, theirs = pair.run(rounds, settings, f"{folder}/b", longer, 4)
    for name in one[0]:
        assert not np.array_equal(one[3][name], two[3][name])
        np.testing.assert_array_equal(one[4][name], two[4][name])
        np.testing.assert_array_equal(one[8][name], two[8][name])
        way = mine[0][name] - (mine[4][name] + theirs[4][name]) / 2
        np.testing.assert_allclose(one[4][name], one[0][name] - 0.7 * 1.9 * way, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("at_step", [15, pytest.param(17, marks=pytest.mark.soak)], ids=["in-a-round", "between"])
def test_it_resumes_to_the_bit(pair: Ranks, settings: Settings, folder: str, at_step: int):
    """Within a round each rank has weights and an optimizer of its own; all of it is restored, and so is the momentum of
    the outer steps."""
    config = apart(FULL.model_copy(update={"ema_decay": None}), every_steps=5)
    assert {step for step, _ in pair.run(interrupted, settings, f"{folder}/a", config, at_step)} == {at_step}
    resumed, other = pair.run(runs.fitted, settings, f"{folder}/a", config)
    assert_same(resumed, other)
    assert_same(resumed, pair.run(runs.fitted, settings, f"{folder}/b", config)[0])


def test_it_learns_as_well_and_others_go_on_with_it(alone: Ranks, pair: Ranks, settings: Settings, folder: str):
    """After as many rows the accuracy is within 0.05 of one process's; so is that of one process that goes on, in mid-round,
    from what two had, and of two that go on from one."""
    plain = FULL.model_copy(
        update={"ema_decay": None, "max_epochs": 6, "model": MlpConfig(hidden_sizes=(16,), dropout=0.0)}
    )
    config = apart(plain, every_steps=5)
    ((one, _),) = alone.run(runs.fitted, settings, f"{folder}/a", plain)
    two, _ = pair.run(runs.fitted, settings, f"{folder}/b", config)[0]
    pair.run(interrupted, settings, f"{folder}/c", config, 15)
    alone.run(interrupted, settings, f"{folder}/c", plain, 29)
    changed, _ = pair.run(runs.fitted, settings, f"{folder}/c", config)[0]
    for course in (two, changed):
        assert course[-1]["step"] == one[-1]["step"] == 72
        assert course[-1]["accuracy"] == pytest.approx(one[-1]["accuracy"], abs=0.05)


@pytest.mark.parametrize(("update", "words"), [
    ({"diloco": {"every_steps": 0}}, r"every_steps(.|\n)*greater than or equal to 1"),
    ({"diloco": {"momentum": 1}}, r"momentum(.|\n)*less than 1"),
    ({"ema_decay": 0.9}, "ema_decay averages over steps, diloco over ranks: leave it out, or take ddp"),
    ({"precision": "fp16"}, "diloco has none: take bf16, or ddp"),
])  # fmt: skip
def test_what_ranks_cannot_do_by_themselves_is_refused(update: dict[str, Any], words: str):
    """With what to take instead."""
    with pytest.raises(ValidationError, match=words):
        TrainConfig.model_validate({"strategy": "diloco", **update})


def test_options_of_other_strategies_are_no_part_of_the_work():
    """What they say does not matter, so the same work is found; of one's own they do, and where nodes meet never does."""
    plain, changed = TrainConfig(), TrainConfig(diloco=DilocoConfig(every_steps=7), rendezvous="here:1")
    assert plain.identity() == changed.identity()
    assert (
        plain.model_copy(update={"strategy": "diloco"}).identity()
        != changed.model_copy(update={"strategy": "diloco"}).identity()
    )


def test_stepper_is_the_one_of_the_strategy(pair: Ranks, settings: Settings, folder: str):
    """Or the tests above would hold of another."""
    assert pair.run(stepper_name, settings, folder, apart(EVEN)) == [DilocoStepper.__name__] * 2


def stepper_name(settings: Settings, folder: str, config: TrainConfig) -> str:
    return type(runs.trainer(settings, folder, config).stepper).__name__
