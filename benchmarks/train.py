"""`modelyard.train` against a bare torch loop over the same rows, and two ranks against one: perceptrons here, a decoder
in `train_gpt.py`, that decoder by every strategy in `train_strategies.py`. One thread a process.

Measured is what lies between the first step and the last, so neither imports nor the start of a group count, and
reports, meetings of the ranks and one small validation do. What a checkpoint costs is in `train_saves.py`, what a start
does in `train_start.py`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks import train_gpt, train_peers, train_saves, train_start, train_strategies
from benchmarks.figures import Figure, Findings, Samples, compare, take_turns
from benchmarks.installation import Installation
from benchmarks.rank_groups import RankGroups, Work
from commands.parts import STORE
from modelyard.models import MlpConfig
from modelyard.settings import Settings
from modelyard.train import OptimizerConfig, RankEvent, StopConfig, TrainConfig

OURS, BARE = "modelyard.train", "bare torch loop"
WIDTH, CLASSES = 784, 10
OVERHEAD_LIMIT, DDP_GOAL, FSDP_GOAL = 1.10, 1.6, 1.35
PARTS = ("perceptron", "ranks", "decoder", "strategies", "saves", "start")


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How much of each."""

    rows: int
    small_steps: int
    large_steps: int
    large_batch: int
    decoder_steps: int
    decoder_batch: int
    rounds: int


FULL = Counts(
    rows=60_000, small_steps=900, large_steps=12, large_batch=4096, decoder_steps=12, decoder_batch=8, rounds=5
)
QUICK = Counts(rows=2_000, small_steps=20, large_steps=2, large_batch=512, decoder_steps=2, decoder_batch=2, rounds=1)


def run(installation: Installation, quick: bool, parts: Sequence[str] = PARTS) -> Findings:
    """Measure; every contestant ends with the same training loss as its rival, or the figure would mean nothing."""
    settings = installation.up([STORE])
    with RankGroups(settings, installation.scratch) as groups:
        findings = _rank_parts(groups, QUICK if quick else FULL, parts)
    rounds = 1 if quick else FULL.rounds
    if "start" in parts:
        findings.add(train_start.measure(settings, rounds=min(rounds, 2)))
    return findings


def _rank_parts(groups: RankGroups, counts: Counts, parts: Sequence[str]) -> Findings:
    findings = Findings()

    def images_of(config: TrainConfig, work: Work) -> dict[str, float]:
        return groups.run(config, work, (images, counts.rows))

    def tokens_of(config: TrainConfig, work: Work, name: str = "") -> dict[str, float]:
        rows = train_gpt.rows_needed(counts.decoder_steps, counts.decoder_batch)
        return groups.run(config, work, (train_gpt.tokens, rows), name)

    size: dict[str, int] = {"steps": counts.decoder_steps, "batch": counts.decoder_batch, "rounds": counts.rounds}
    if {"perceptron", "decoder"} & set(parts):
        peers, notes = train_peers.available()
        findings.notes += notes
        if "perceptron" in parts:
            findings.add(_perceptron(images_of, counts, peers))
            groups.stop()
        if "decoder" in parts:
            findings.add(train_gpt.measure(tokens_of, peers, **size | {"rounds": min(counts.rounds, 4)}))
            groups.stop()
    if "ranks" in parts:
        findings.add(_ranks(images_of, counts))
        groups.stop()
    if "strategies" in parts:
        findings.add(train_strategies.measure(tokens_of, **size | {"rounds": min(counts.rounds, 2)}))
        groups.stop()
    if "saves" in parts:
        findings.add(train_saves.measure(tokens_of, rounds=counts.rounds))
    findings.notes.append(
        "Steps are measured without checkpoints: these are written beside training, at intervals of the user's choice."
    )
    return findings


def _perceptron(group: train_gpt.Group, counts: Counts, peers: Mapping[str, Work]) -> Findings:
    """What a step costs, against a loop by hand and against other libraries' loops."""
    small = _small(counts)
    works: dict[str, Work] = {OURS: _our_loop, BARE: _bare_loop, **peers}
    samples = take_turns({who: partial(group, small, work) for who, work in works.items()}, counts.rounds)
    _require_same_loss(samples)

    def step(against: str, target: float | None = None) -> Figure:
        return compare(samples, "us per step", subject=OURS, against=against, name="step of a 784-128-10 perceptron, 64 rows",
                       unit="us", better="less", target=target)  # fmt: skip

    note = (
        f"The perceptron: {counts.small_steps} steps of fused Adam in fp32 over the same {counts.rows:,} rows in the same"
        f" order, {counts.rounds} rounds."
    )
    return Findings(figures=[step(BARE, OVERHEAD_LIMIT), *(step(peer) for peer in peers)], notes=[note])


def _ranks(group: train_gpt.Group, counts: Counts) -> Findings:
    """Two ranks against one."""
    large = _large(counts)
    two = large.model_copy(update={"ranks": 2})
    configs = {"1 rank": large, "ddp, 2 ranks": two, "fsdp, 2 ranks": two.model_copy(update={"strategy": "fsdp"})}
    samples = take_turns({who: partial(group, config, _our_loop) for who, config in configs.items()}, counts.rounds)
    _require_same_loss(samples)
    return Findings(
        figures=[
            compare(samples, "rows/s", subject=who, against="1 rank",
                    name=f"784-1024-1024-10, bf16, {counts.large_batch} rows a step", unit="rows/s", better="more", target=goal)
            for who, goal in [("ddp, 2 ranks", DDP_GOAL), ("fsdp, 2 ranks", FSDP_GOAL)]
        ],
        notes=[f"The ranks: {counts.large_steps} steps over gloo on the loopback."],
    )  # fmt: skip


def _require_same_loss(samples: Samples) -> None:
    losses = [sample["loss"] for each in samples.values() for sample in each]
    assert max(losses) - min(losses) < 0.02 * abs(max(losses)), f"they did not train the same: {samples}"


def _small(counts: Counts) -> TrainConfig:
    return TrainConfig(
        model=MlpConfig(hidden_sizes=(128,), dropout=0.0),
        optimizer=OptimizerConfig(name="adam", learning_rate=1e-3),
        stop=StopConfig(max_steps=counts.small_steps),
        ranks=1,
    )


def _large(counts: Counts) -> TrainConfig:
    return TrainConfig(
        model=MlpConfig(hidden_sizes=(1024, 1024), dropout=0.0),
        optimizer=OptimizerConfig(name="adam", learning_rate=1e-4),
        batch_size=counts.large_batch,
        stop=StopConfig(max_steps=counts.large_steps),
        precision="bf16",
        ranks=1,
    )


def images(rows: int) -> tuple[Any, Any]:
    """Random features (rows, width) and classes."""
    import torch

    draw = torch.Generator().manual_seed(0)
    features = torch.rand(rows, WIDTH, generator=draw)
    return features, torch.randint(0, CLASSES, (rows,), generator=draw)


def _our_loop(settings: Settings, config: TrainConfig, features: Any, targets: Any, name: str) -> dict[str, float]:
    import torch

    from modelyard.metrics import ClassificationMetrics
    from modelyard.models.build import build_model
    from modelyard.storage import Store
    from modelyard.train.checkpoints import Checkpoints
    from modelyard.train.loop import Trainer
    from modelyard.train.rows import Split
    from modelyard.train.validation import Objective

    moments: dict[str, float] = {}

    def emit(event: RankEvent) -> None:
        moments[event.kind] = time.perf_counter()

    store = Store(settings)
    trainer = Trainer(
        config,
        build_model(config.model, WIDTH, CLASSES),
        torch.device("cpu"),
        train=Split(features=features, targets=targets),
        validation=Split(features=features[:64], targets=targets[:64]),
        objective=Objective(loss="cross_entropy", metric="accuracy", new_metric=lambda: ClassificationMetrics(CLASSES)),
        checkpoints=Checkpoints(store, f"{store.root}/bench/{name}", config.checkpoint),
        emit=emit,
    )
    progress = trainer.fit()
    if trainer.stepper.rank > 0:
        return {}  # rank 0 alone tells, and is alone asked
    return _figures(config, moments["validation"] - moments["started"], progress.validations[-1]["train_loss"])


def _bare_loop(settings: Settings, config: TrainConfig, features: Any, targets: Any, name: str) -> dict[str, float]:
    import torch
    from torch import nn

    from modelyard.models.build import build_model
    from modelyard.train.order import epoch_order

    del settings, name
    network = build_model(config.model, WIDTH, CLASSES)
    optimizer = torch.optim.Adam(network.parameters(), lr=config.optimizer.learning_rate, fused=True)
    order = epoch_order(len(targets), config.seed, 0)
    steps = config.stop.max_steps or 0
    total = torch.zeros((), dtype=torch.float64)
    began = time.perf_counter()
    for start in range(0, steps * config.batch_size, config.batch_size):
        rows = order[start : start + config.batch_size]
        loss = nn.functional.cross_entropy(network(features[rows]), targets[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.detach()
    return _figures(config, time.perf_counter() - began, float(total) / steps)


def _figures(config: TrainConfig, seconds: float, loss: float) -> dict[str, float]:
    steps = config.stop.max_steps or 0
    return {"us per step": seconds / steps * 1e6, "rows/s": steps * config.batch_size / seconds, "loss": loss}
