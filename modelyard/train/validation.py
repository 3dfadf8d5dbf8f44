"""Metrics on the validation split, over all ranks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import distributed

from modelyard.metrics import Metric
from modelyard.train.losses import REDUCED, token_losses
from modelyard.train.pair_rows import Pairs, TextPairs
from modelyard.train.pair_validation import validate_pairs
from modelyard.train.rows import Rows
from modelyard.train.stepper import Stepper

VALIDATION_ROWS = 1024


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What training asks of a task kind.

    Attributes:
        loss: key in `LOSSES`.
        metric: name of the validation metric that decides.
        new_metric: a fresh accumulator.
        validation_rows: rows a rank validates at a time, unless its share of a batch is larger.
        temperature: of rows that are pairs: what similarities are divided by.
    """

    loss: str
    metric: str
    new_metric: Callable[[], Metric]
    validation_rows: int = VALIDATION_ROWS
    temperature: float = 1.0


@torch.no_grad()
def validate(stepper: Stepper, split: Rows, objective: Objective, num_rows: int) -> dict[str, float]:
    """Metrics over a whole split, each rank scoring its share. A collective.

    Args:
        num_rows: that a rank scores at a time.
    """
    stepper.parallel.eval()
    stepper.settle_()
    stepper.align_()
    metric = objective.new_metric()
    if isinstance(split, Pairs | TextPairs):
        with stepper.average.in_place() if stepper.average else nullcontext():
            return validate_pairs(stepper, split, metric, num_rows, objective.temperature)
    # Equal numbers of batches: under fsdp a forward pass is a collective.
    shares = torch.arange(len(split)).split(num_rows * stepper.judged.count)
    with stepper.average.in_place() if stepper.average else nullcontext():
        for rows in shares:
            batch = split.batch(stepper.judged.of(rows))
            outputs = stepper.outputs(batch.features)
            if objective.loss in REDUCED:
                outputs = token_losses(outputs, batch.targets.to(outputs.device))
            if stepper.counts:
                metric.update(outputs.cpu().numpy(), batch.targets.numpy())
    state = torch.from_numpy(metric.state).to(stepper.device)
    distributed.all_reduce(state)
    metric.state = state.cpu().numpy()
    return metric.compute()
