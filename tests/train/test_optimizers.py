"""Optimizers, schedules, precision and accumulation, through the real Trainer's step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from modelyard.models import MlpConfig
from modelyard.models.build import build_model
from modelyard.settings import Settings
from modelyard.train import OptimizerConfig, ScheduleConfig, TrainConfig
from modelyard.train.optimizers import build_optimizers, hidden_matrices
from modelyard.train.rows import Split
from modelyard.train.schedules import Plateau, rate_fraction
from modelyard.train.validation import Objective
from tests.train import runs
from tests.train.ranks import Ranks

NO_DROPOUT = runs.PLAIN.model_copy(update={"model": MlpConfig(hidden_sizes=(16, 16), dropout=0.0)})


def squared(metric: Callable[[], Any]) -> Objective:
    return Objective(loss="mean_squared_error", metric="loss", new_metric=metric)


def one_step(settings: Settings, folder: str) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray, np.ndarray]:
    """The 3-4-2 network, weights drawn from N(0, 1), before and after one step of sgd 0.01."""
    config = runs.PLAIN.model_copy(
        update={"optimizer": OptimizerConfig(name="sgd", learning_rate=0.01), "batch_size": 5}
    )
    network = build_model(MlpConfig(hidden_sizes=(4,), dropout=0.0, activation="tanh"), 3, 2)
    draw = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=draw)
    data = Split(features=torch.randn(5, 3, generator=draw), targets=torch.randn(5, 2, generator=draw))
    made = runs.trainer(settings, folder, config, train=data, network=network, objective=squared(lambda: None))
    before = [parameter.detach().numpy().copy() for parameter in network.parameters()]
    made._train_steps()
    after = [parameter.detach().numpy().copy() for parameter in network.parameters()]
    return before, after, data.features.numpy(), data.targets.numpy()


def test_step_equals_numpys(alone: Ranks, settings: Settings, folder: str):
    """3-4-2, weights N(0, 1), mean squared error, sgd 0.01: each weight moves by NumPy's -lr * dL/dW."""
    ((before, after, x, y),) = alone.run(one_step, settings, folder)
    first, bias_1, second, bias_2 = (values.astype(np.float64) for values in before)
    hidden = np.tanh(x @ first.T + bias_1)
    error = 2 * (hidden @ second.T + bias_2 - y) / y.size
    inner = (error @ second) * (1 - hidden**2)
    gradients = [inner.T @ x, inner.sum(0), error.T @ hidden, error.sum(0)]
    for old, new, gradient in zip(before, after, gradients, strict=True):
        np.testing.assert_allclose(new, old - 0.01 * gradient, rtol=1e-5, atol=1e-6)


def torchs_own(name: str, parameters: Any) -> torch.optim.Optimizer:
    make: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
        "gd": lambda given: torch.optim.SGD(given, lr=0.05),
        "sgd": lambda given: torch.optim.SGD(given, lr=0.05, momentum=0.9, nesterov=True),
        "adagrad": lambda given: torch.optim.Adagrad(given, lr=0.05),
        "rmsprop": lambda given: torch.optim.RMSprop(given, lr=0.05, momentum=0.9),
        "adam": lambda given: torch.optim.Adam(given, lr=0.05),
        "adamw": lambda given: torch.optim.AdamW(given, lr=0.05, weight_decay=0.0),
    }
    return make[name](parameters)


def against_a_bare_loop(settings: Settings, folder: str, name: str) -> None:
    """Ten steps of the Trainer and of a plain loop over the same batches."""
    momentum = 0.9 if name in {"sgd", "rmsprop"} else 0.0
    optimizer = OptimizerConfig(name=name, learning_rate=0.05, momentum=momentum, nesterov=name == "sgd")
    config = NO_DROPOUT.model_copy(update={"optimizer": optimizer, "accumulate": 3})
    made = runs.trainer(settings, folder, config)
    torch.manual_seed(config.seed)
    plain = build_model(config.model, runs.WIDTH, runs.CLASSES)
    bare = torchs_own(name, plain.parameters())
    for _ in range(10):
        made._train_steps()
        rows = made._order.last_batch
        bare.zero_grad()
        batch = made.train.batch(rows)
        nn.functional.cross_entropy(plain(batch.features), batch.targets).backward()
        bare.step()
    if name == "gd":
        assert len(rows) == runs.ROWS
    for mine, theirs in zip(made.stepper.network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["gd", "sgd", "adagrad", "rmsprop", "adam", "adamw"])
def test_optimizer_steps_as_torchs_own(alone: Ranks, settings: Settings, folder: str, name: str):
    """Named, fused, with the batch in three passes: the same weights as a bare loop over the same rows. gd sees all."""
    alone.run(against_a_bare_loop, settings, folder, name)


def test_muon_takes_hidden_matrices_only():
    """Biases, embeddings and the last matrix go to adamw; every parameter is stepped by exactly one of the two."""
    network = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2))
    muon, adamw = build_optimizers(OptimizerConfig(name="muon"), network, runs.CPU)
    mine = [id(parameter) for group in muon.param_groups for parameter in group["params"]]
    rest = [id(parameter) for group in adamw.param_groups for parameter in group["params"]]
    assert mine == [id(network[1].weight), id(network[2].weight)] == [id(one) for one in hidden_matrices(network)]
    assert sorted(mine + rest) == sorted(id(parameter) for parameter in network.parameters())


def learned(settings: Settings, folder: str, update: dict[str, Any]) -> tuple[list[dict[str, float]], list[str]]:
    notes: list[str] = []
    made = runs.trainer(
        settings, folder, NO_DROPOUT.model_copy(update={"max_epochs": 12, **update}),
        lambda event: notes.append(event.message) if event.kind == "warning" else None,
    )  # fmt: skip
    return made.fit().validations, notes


@pytest.mark.parametrize(
    "update",
    [
        {"optimizer": OptimizerConfig(name="muon", learning_rate=0.02)},
        {"precision": "bf16", "optimizer": OptimizerConfig(learning_rate=0.01)},
        {"precision": "fp16", "optimizer": OptimizerConfig(learning_rate=0.01), "clip_norm": 1.0},
        {"ema_decay": 0.9, "optimizer": OptimizerConfig(learning_rate=0.01)},
        {"schedule": ScheduleConfig(name="plateau"), "optimizer": OptimizerConfig(name="rmsprop", learning_rate=0.01)},
    ],
    ids=["muon", "bf16", "fp16", "ema", "plateau"],
)
def test_it_learns(alone: Ranks, settings: Settings, folder: str, update: dict[str, Any]):
    """Each way of stepping separates three well separated classes."""
    ((validations, notes),) = alone.run(learned, settings, folder, update)
    assert not notes
    assert max(row["accuracy"] for row in validations) > 0.9


def test_low_precision_is_used(alone: Ranks, settings: Settings, folder: str):
    """bf16 is not fp32: the curves are close, and differ."""
    ((whole, _),) = alone.run(learned, settings, f"{folder}/a", {})
    ((half, _),) = alone.run(learned, settings, f"{folder}/b", {"precision": "bf16"})
    assert half[-1]["loss"] != whole[-1]["loss"]
    assert half[-1]["loss"] == pytest.approx(whole[-1]["loss"], rel=0.05)


def clipped_step(settings: Settings, folder: str, clip_norm: float) -> float:
    sgd = OptimizerConfig(name="sgd", learning_rate=1.0)
    made = runs.trainer(settings, folder, NO_DROPOUT.model_copy(update={"optimizer": sgd, "clip_norm": clip_norm}))
    before = runs.weights(made)
    made._train_steps()
    after = runs.weights(made)
    return math.sqrt(sum(float((after[name] - before[name]).square().sum()) for name in before))


def test_gradients_are_clipped_to_their_norm(alone: Ranks, settings: Settings, folder: str):
    """sgd at rate 1 moves by the gradient: with a bound by exactly that much, without one by more."""
    (free,) = alone.run(clipped_step, settings, f"{folder}/a", 0.0)
    (bound,) = alone.run(clipped_step, settings, f"{folder}/b", free / 4)
    assert bound == pytest.approx(free / 4, rel=1e-3)


def compiled(settings: Settings, folder: str, breaks: bool) -> tuple[list[float], list[str]]:
    """The loss curve under `torch.compile`, with a compiler that works or one that does not."""
    notes: list[str] = []
    config = NO_DROPOUT.model_copy(update={"compile": True})
    with pytest.MonkeyPatch.context() as patch:
        if breaks:
            torch._dynamo.reset()
            patch.setenv("CXX", "/nonexistent/compiler")
            patch.setattr(torch._inductor.config.cpp, "cxx", ("/nonexistent/compiler",))
            patch.setattr(torch._inductor.config, "force_disable_caches", True)
        made = runs.trainer(settings, folder, config, lambda event: notes.append(event.message))
    losses = []
    for _ in range(4):
        made._train_steps()
        losses.append(float(made.loss_sum))
    return losses, notes


@pytest.mark.parametrize("breaks", [pytest.param(False, marks=pytest.mark.soak), True])
def test_compilation_falls_back(alone: Ranks, settings: Settings, folder: str, breaks: bool):
    """The same losses compiled and not; where no compiler works, training goes on without and says why."""
    (plain,) = alone.run(runs.loss_curve, settings, f"{folder}/a", NO_DROPOUT, 4)
    ((losses, notes),) = alone.run(compiled, settings, f"{folder}/b", breaks)
    assert losses == pytest.approx(np.cumsum(plain) * 8, rel=1e-5)
    assert len([note for note in notes if "torch.compile was given up" in note]) == int(breaks)


# -- schedules ----------------------------------------------------------------------------------------


def fractions(**config: Any) -> list[float]:
    return [rate_fraction(ScheduleConfig(**config), step, 100) for step in range(100)]


def test_schedules_follow_their_formulas():
    """Warm-up rises, constant stays, linear and cosine fall to their end, wsd stays and falls at the end."""
    assert fractions(name="constant", warmup_steps=4)[:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])
    assert fractions(name="linear", final_fraction=0.5)[50] == pytest.approx(0.75)
    cosine = fractions(name="cosine", warmup_steps=10, final_fraction=0.1)
    assert cosine[10] == 1.0
    assert cosine[55] == pytest.approx(0.55)
    assert cosine[-1] == pytest.approx(0.1, abs=1e-3)
    wsd = fractions(name="wsd", decay_fraction=0.2)
    assert wsd[79] == 1.0
    assert wsd[90] == pytest.approx(0.5)
    assert rate_fraction(ScheduleConfig(name="linear"), 1000, 100) == 0.0


def test_schedules_are_torchs():
    """Step by step what `torch.optim.lr_scheduler` computes for cosine and linear."""
    parameter = nn.Parameter(torch.zeros(1))
    for name, make in {
        "cosine": lambda given: torch.optim.lr_scheduler.CosineAnnealingLR(given, 100, eta_min=0.2),
        "linear": lambda given: torch.optim.lr_scheduler.LinearLR(given, 1.0, 0.2, 100),
    }.items():
        optimizer = torch.optim.SGD([parameter], lr=1.0)
        schedule, theirs = make(optimizer), []
        for _ in range(100):
            theirs.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        assert fractions(name=name, final_fraction=0.2) == pytest.approx(theirs, abs=1e-9)


def test_plateau_lowers_the_rate_after_its_patience():
    """Two validations without a lower loss halve the rate, and never below its end."""
    config = ScheduleConfig(name="plateau", plateau_patience=2, plateau_factor=0.5, final_fraction=0.2)
    plateau = Plateau()
    seen = []
    for loss in [3.0, 2.0, 2.0, 2.5, 1.0, 1.0, 1.0, 1.0, 1.0]:
        plateau.observe(config, loss)
        seen.append(plateau.fraction)
    assert seen == [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.2]


# -- names --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"optimizer": {"name": "adma"}}, r"optimizer\.name(.|\n)*'adma' is not known; did you mean 'adam'\?"),
        ({"schedule": {"name": "cosin"}}, r"schedule\.name(.|\n)*did you mean 'cosine'\?"),
        ({"strategy": "fdsp"}, r"strategy(.|\n)*did you mean 'fsdp'\? There are ddp, fsdp, hsdp"),
        ({"precision": "fp61"}, r"precision(.|\n)*did you mean 'fp16'\?"),
        ({"strategy": "fsdp", "precision": "fp16"}, "take bf16, or ddp"),
        ({"strategy": "fsdp", "optimizer": {"name": "muon"}}, "take adamw, or ddp"),
        ({"batch_size": 1, "ranks": 2}, "batch_size 1 is smaller than ranks 2"),
        ({"optimizer": {"name": "adam", "nesterov": True}}, "nesterov is sgd's"),
    ],
)
def test_config_that_cannot_work_is_refused(config: dict[str, Any], words: str):
    """A mistyped name brings the nearest known one; combinations that fail are refused with what to take instead."""
    with pytest.raises(ValidationError, match=words):
        TrainConfig.model_validate(config)
