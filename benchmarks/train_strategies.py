"""Every strategy with the decoder of `train_gpt.py`: throughput against one rank, memory against a copy on each."""

from __future__ import annotations

from functools import partial
from typing import Any

from benchmarks import train_gpt
from benchmarks.figures import Figure, Findings, compare, take_turns
from modelyard.settings import Settings
from modelyard.train import OptimizerConfig, StopConfig, TrainConfig

ONE, COPIES = "ddp, 1 rank", "ddp, 2 ranks"
# Two ranks read rows in each; servers come on top.
WAYS: dict[str, dict[str, Any]] = {
    COPIES: {"strategy": "ddp"},
    "fsdp, 2 ranks": {"strategy": "fsdp"},
    "hsdp, 2 ranks": {"strategy": "hsdp"},
    "tensor, 2 ranks": {"strategy": "tensor"},
    "parameter_server, 2 workers, 1 server": {"strategy": "parameter_server", "ranks": 3},
    "the same, asynchronous": {
        "strategy": "parameter_server",
        "ranks": 3,
        "parameter_server": {"mode": "asynchronous"},
    },
    "diloco, 2 ranks": {"strategy": "diloco"},
}
NOTE = (
    "The strategies share the cores of one machine, servers included, and exchange over its loopback. Memory is how far the"
    " fullest rank's peak grew in its first training, with activations and buffers."
)
OWN_COURSE = {"the same, asynchronous", "diloco, 2 ranks"}


def measure(group: train_gpt.Group, *, steps: int, batch: int, rounds: int) -> Findings:
    """Tokens a second, and what the fullest rank held beyond what it began with.

    Args:
        group: runs a piece of work on as many fresh ranks as a config says; what rank 0 measured.
    """
    base = TrainConfig(
        model=train_gpt.NETWORK,
        optimizer=OptimizerConfig(name="adamw", learning_rate=3e-4),
        batch_size=batch,
        stop=StopConfig(max_steps=steps),
        precision="bf16",
        ranks=1,
    )

    def spread(changes: dict[str, Any]) -> TrainConfig:
        return TrainConfig.model_validate(base.model_dump() | {"ranks": 2} | changes)

    configs = {ONE: base, **{name: spread(changes) for name, changes in WAYS.items()}}
    turns = {name: partial(group, config, _loop, name) for name, config in configs.items()}
    samples = take_turns(turns, rounds)
    losses = [sample["loss"] for name in samples.keys() - OWN_COURSE for sample in samples[name]]
    assert max(losses) - min(losses) < 0.02 * max(losses), "they did not train the same"
    name = f"17 M weights, bf16, {batch} x {train_gpt.LENGTH} tokens a step"
    speeds = [
        compare(samples, "tokens/s", subject=who, against=ONE, name=name, unit="tokens/s", better="more")
        for who in WAYS
    ]
    sizes: list[Figure] = [
        compare(samples, "MB", subject=who, against=COPIES, name="memory of the fullest rank", unit="MB", better="less")
        for who in WAYS
        if who != COPIES
    ]
    return Findings(
        figures=[*speeds, *sizes],
        notes=[NOTE],
    )


# What a process has held at most it has held for good: the first turn's growth is the one that counts.
_first: dict[str, float] = {}


def _loop(settings: Settings, config: TrainConfig, features: Any, targets: Any, name: str) -> dict[str, float]:
    import torch
    from torch import distributed

    from modelyard.train.costs import memory_bytes

    before = memory_bytes(torch.device("cpu"))
    found = train_gpt.our_loop(settings, config, features, targets, name)
    grown: list[float] = [0.0] * distributed.get_world_size()
    distributed.all_gather_object(grown, memory_bytes(torch.device("cpu")) - before)
    _first.setdefault("MB", max(grown) / 1e6)
    return {**found, **_first} if found else {}
