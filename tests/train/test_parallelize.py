"""One network on several ranks computes what it computes on one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from modelyard.models import MlpConfig
from modelyard.models.build import build_model
from modelyard.settings import Settings
from modelyard.train import FsdpConfig, HsdpConfig, OptimizerConfig, TrainConfig
from modelyard.train.parallelize import layers_of
from tests.train import runs
from tests.train.ranks import Ranks

PLAIN = runs.PLAIN.model_copy(
    update={
        "model": MlpConfig(hidden_sizes=(16, 16), dropout=0.0),
        "optimizer": OptimizerConfig(name="adamw", learning_rate=0.01, weight_decay=0.1),
        "clip_norm": 0.5,
        "batch_size": 9,
    }
)
MOMENTUM = {"sgd": {"momentum": 0.9, "nesterov": True}}
STEPS = 25  # more than two epochs of 90 rows by 9, so that a batch falls unevenly on two ranks


@pytest.mark.parametrize(
    "update",
    [
        {"strategy": "ddp"},
        {"strategy": "ddp", "accumulate": 3},
        {"strategy": "fsdp"},
        {"strategy": "fsdp", "accumulate": 3},
        {"strategy": "fsdp", "fsdp": FsdpConfig(reshard=False)},
        {"strategy": "fsdp", "fsdp": FsdpConfig(checkpoint_activations=True)},
        {"strategy": "hsdp"},
        {"strategy": "hsdp", "hsdp": HsdpConfig(shards=1), "accumulate": 3},
    ],
    ids=[
        *("ddp", "ddp-accumulate", "fsdp", "fsdp-accumulate", "fsdp-no-reshard", "fsdp-checkpoint-activations"),
        *("hsdp", "hsdp-copies-accumulate"),
    ],
)
def test_two_ranks_follow_the_loss_curve_of_one(
    alone: Ranks, pair: Ranks, settings: Settings, folder: str, update: dict[str, Any]
):
    """Step by step: a gradient is the mean over the global batch, however its rows and weights are spread."""
    (one,) = alone.run(runs.loss_curve, settings, f"{folder}/a", PLAIN, STEPS)
    two, again = pair.run(
        runs.loss_curve, settings, f"{folder}/b", PLAIN.model_copy(update={**update, "ranks": 2}), STEPS
    )
    assert two == again
    assert two == pytest.approx(one, rel=2e-5)


@pytest.mark.parametrize("name", ["gd", "sgd", "adagrad", "rmsprop", "adam", "muon"])
def test_every_optimizer_steps_on_shards(alone: Ranks, pair: Ranks, settings: Settings, folder: str, name: str):
    """As on the whole weights, whatever torch has a fused kernel for; muon computes in bf16."""
    optimizer = OptimizerConfig.model_validate({"name": name, "learning_rate": 0.01} | MOMENTUM.get(name, {}))
    config = PLAIN.model_copy(update={"optimizer": optimizer})
    (one,) = alone.run(runs.loss_curve, settings, f"{folder}/a", config, 6)
    two, _ = pair.run(
        runs.loss_curve, settings, f"{folder}/b", config.model_copy(update={"strategy": "fsdp", "ranks": 2}), 6
    )
    assert two == pytest.approx(one, rel=1e-3 if name == "muon" else 2e-5)


def test_mixed_precision_under_fsdp_learns(pair: Ranks, settings: Settings, folder: str):
    """bf16 weights in the passes, fp32 ones in the optimizer: another curve than fp32's, and the same destination."""
    sharded = PLAIN.model_copy(update={"strategy": "fsdp", "ranks": 2})
    half = sharded.model_copy(update={"precision": "bf16"})
    whole_curve = pair.run(runs.loss_curve, settings, f"{folder}/a", sharded, STEPS)[0]
    half_curve = pair.run(runs.loss_curve, settings, f"{folder}/b", half, STEPS)[0]
    assert half_curve != whole_curve
    assert half_curve == pytest.approx(whole_curve, rel=0.05)


def shard_sizes(settings: Settings, folder: str) -> tuple[int, int]:
    """Elements that this rank holds, and elements there are."""
    made = runs.trainer(settings, folder, PLAIN.model_copy(update={"strategy": "fsdp", "ranks": 2}))
    parameters = list(made.stepper.network.parameters())
    mine = [getattr(parameter, "to_local")() for parameter in parameters]  # noqa: B009 - a DTensor by now
    return sum(shard.numel() for shard in mine), sum(parameter.numel() for parameter in parameters)


def test_fsdp_shards_the_weights(pair: Ranks, settings: Settings, folder: str):
    """Each rank holds about half, and together exactly all of them."""
    (one, total), (two, _) = pair.run(shard_sizes, settings, folder)
    assert one + two == total
    assert one < 0.6 * total


@pytest.mark.parametrize(("update", "words"), [
    ({"strategy": "hsdp", "ranks": 3}, r"ranks 3 cannot be split into groups of hsdp\.shards 2: take ranks 2 or 4"),
    ({"strategy": "tensor", "ranks": 1}, r"ranks 1 cannot be split into groups of tensor\.size 2: take ranks 2"),
    ({"strategy": "hsdp", "hsdp": {"shards": 0}}, r"shards(.|\n)*greater than or equal to 1"),
    ({"strategy": "hsdp", "precision": "fp16"}, "fp16 needs one loss scale, and hsdp has none: take bf16, or ddp"),
    ({"strategy": "tensor", "optimizer": {"name": "muon"}}, "tensor shards them: take adamw, or ddp"),
    ({"strategy": "tensro"}, r"'tensro' is not known; did you mean 'tensor'\? There are ddp, fsdp, hsdp, tensor"),
    ({"strategy": "tensor", "tensor": {"sise": 2}}, r"tensor\.sise(.|\n)*Extra inputs are not permitted"),
])  # fmt: skip
def test_ranks_that_do_not_fit_the_mesh_are_refused_by_the_config(update: dict[str, Any], words: str):
    """With the numbers that would do."""
    with pytest.raises(ValidationError, match=words):
        TrainConfig.model_validate(update)


def test_layers_are_what_is_sharded():
    """The repeated parts that have weights: of a perceptron its linear layers."""
    network = build_model(MlpConfig(hidden_sizes=(8, 8)), 4, 2)
    assert [type(layer) for layer in layers_of(network)] == [torch.nn.Linear] * 3
