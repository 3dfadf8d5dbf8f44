"""A decoder of 17 million weights: `modelyard.train` against a bare torch loop, and two ranks against one, in bf16."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from statistics import median
from typing import Any

from benchmarks.figures import Findings, Samples, compare, take_turns
from modelyard.models import GptConfig
from modelyard.settings import Settings
from modelyard.train import OptimizerConfig, RankEvent, StopConfig, TrainConfig

OURS, BARE = "modelyard.train", "bare torch loop"
VOCABULARY, LENGTH = 8192, 256
NETWORK = GptConfig(kind="gpt", layers=8, width=384, heads=6, key_value_heads=2, hidden=1024)
OVERHEAD_LIMIT, DDP_GOAL, FSDP_GOAL, GFLOPS_GOAL = 1.03, 1.6, 1.35, 200.0
BOUND = "the bound"
Work = Callable[[Settings, TrainConfig, Any, Any, str], dict[str, float]]
Group = Callable[..., dict[str, float]]


def measure(group: Group, peers: Mapping[str, Work], *, steps: int, batch: int, rounds: int) -> Findings:
    """Tokens a second of each.

    Args:
        group: runs a piece of work on as many fresh ranks as a config says; what rank 0 measured.
        peers: loops of other libraries, by their names.
    """
    config = TrainConfig(
        model=NETWORK,
        optimizer=OptimizerConfig(name="adamw", learning_rate=3e-4),
        batch_size=batch,
        stop=StopConfig(max_steps=steps),
        precision="bf16",
        ranks=1,
    )
    two = config.model_copy(update={"ranks": 2})
    samples = take_turns(
        {
            OURS: lambda: group(config, our_loop),
            BARE: lambda: group(config, bare_loop),
            **{who: partial(group, config, loop) for who, loop in peers.items()},
            "ddp, 2 ranks": lambda: group(two, our_loop),
            "fsdp, 2 ranks": lambda: group(two.model_copy(update={"strategy": "fsdp"}), our_loop),
        },
        rounds,
    )
    losses = [sample["loss"] for each in samples.values() for sample in each]
    assert max(losses) - min(losses) < 0.02 * max(losses), f"they did not train the same: {losses}"
    name = f"17 M weights, bf16, {batch} x {LENGTH} tokens a step"
    samples[BOUND] = [{"GFLOP/s": GFLOPS_GOAL}] * rounds
    return Findings(
        figures=[
            compare(samples, "GFLOP/s", subject=OURS, against=BOUND, name=f"{name}: arithmetic of one core",
                    unit="GFLOP/s", better="more", target=1.0),
            compare(samples, "ms per step", subject=OURS, against=BARE, name=name, unit="ms", better="less",
                    target=OVERHEAD_LIMIT),
            *(
                compare(samples, "ms per step", subject=OURS, against=peer, name=name, unit="ms", better="less")
                for peer in peers
            ),
            *(
                compare(samples, "tokens/s", subject=who, against=OURS, name=name, unit="tokens/s", better="more",
                        target=goal)
                for who, goal in [("ddp, 2 ranks", DDP_GOAL), ("fsdp, 2 ranks", FSDP_GOAL)]
            ),
        ],
        notes=[_utilisation({who: samples[who] for who in samples if who not in peers and who != BOUND}, steps)],
    )  # fmt: skip


def tokens(rows: int) -> tuple[Any, Any]:
    """Random sequences (rows, t) and what follows each of their tokens."""
    import torch

    drawn = torch.randint(0, VOCABULARY, (rows, LENGTH + 1), generator=torch.Generator().manual_seed(0))
    return drawn[:, :-1].contiguous(), drawn[:, 1:].contiguous()


def trainer_of(
    settings: Settings, config: TrainConfig, features: Any, targets: Any, name: str, emit: Callable[[RankEvent], None]
) -> Any:
    """A Trainer of the decoder, its checkpoints below ``name`` in the bucket; it validates one sequence."""
    import torch

    from modelyard.metrics import LanguageMetrics
    from modelyard.models.build import build_model
    from modelyard.storage import Store
    from modelyard.train.checkpoints import Checkpoints
    from modelyard.train.costs import costs_of, try_out
    from modelyard.train.loop import Trainer
    from modelyard.train.rows import Split
    from modelyard.train.validation import Objective

    store = Store(settings)
    network = build_model(config.model, LENGTH, VOCABULARY)
    costs = costs_of(try_out(network, features[:2]), features[:2], config.precision, features.device)
    trainer = Trainer(
        config,
        network,
        torch.device("cpu"),
        train=Split(features=features, targets=targets),
        validation=Split(features=features[:1], targets=targets[:1]),
        objective=Objective(
            loss="next_token",
            metric="loss",
            new_metric=lambda: LanguageMetrics([1] * VOCABULARY),
            validation_rows=1,
        ),
        checkpoints=Checkpoints(store, f"{store.root}/bench/{name}", config.checkpoint),
        emit=emit,
    )
    trainer.costs = costs
    return trainer


def our_loop(settings: Settings, config: TrainConfig, features: Any, targets: Any, name: str) -> dict[str, float]:
    """The Trainer from its first step to its last, with reports, meetings, and a validation of one sequence."""
    moments: dict[str, float] = {}

    def emit(event: RankEvent) -> None:
        moments[event.kind] = time.perf_counter()

    trainer = trainer_of(settings, config, features, targets, name, emit)
    progress = trainer.fit()
    if trainer.stepper.rank > 0:
        return {}
    found = _figures(config, moments["validation"] - moments["started"], progress.validations[-1]["train_loss"])
    rows = found["tokens/s"] / LENGTH
    return found | {
        "mfu": trainer.costs.figures(rows, config.ranks)["mfu"],
        "GFLOP/s": rows * trainer.costs.flops_per_row / config.ranks / 1e9,
    }


def bare_loop(settings: Settings, config: TrainConfig, features: Any, targets: Any, name: str) -> dict[str, float]:
    """What one would write by hand: the same network, rows and optimizer."""
    import torch
    from torch import nn

    from modelyard.models.build import build_model
    from modelyard.train.order import epoch_order

    del settings, name
    network = build_model(config.model, LENGTH, VOCABULARY)
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.optimizer.learning_rate, weight_decay=0.0, fused=True)
    order = epoch_order(len(targets), config.seed, 0)
    steps, total = config.stop.max_steps or 0, 0.0
    began = time.perf_counter()
    for start in range(0, steps * config.batch_size, config.batch_size):
        rows = order[start : start + config.batch_size]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            scores = network(features[rows])
        loss = nn.functional.cross_entropy(scores.float().flatten(0, 1), targets[rows].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += float(loss.detach())
    return _figures(config, time.perf_counter() - began, total / steps)


def _figures(config: TrainConfig, seconds: float, loss: float) -> dict[str, float]:
    steps = config.stop.max_steps or 0
    return {
        "ms per step": seconds / steps * 1e3,
        "tokens/s": steps * config.batch_size * LENGTH / seconds,
        "loss": loss,
    }


def _utilisation(samples: Samples, steps: int) -> str:
    def middle(of: str, what: str) -> float:
        return median(sample[what] for sample in samples[of])

    told = ", ".join(
        f"{who}: {middle(who, 'tokens/s'):,.0f} tokens/s, {middle(who, 'mfu'):.0%}" for who in samples if who != BARE
    )
    return (
        f"The decoder: {steps} steps of fused AdamW over random tokens of a vocabulary of {VOCABULARY:,}. Medians, with the"
        f" share of a bf16 matrix product's speed on the same core that the model used: {told}."
    )


def rows_needed(steps: int, batch: int) -> int:
    """Sequences, so that training ends within its first epoch."""
    return steps * batch + 1
