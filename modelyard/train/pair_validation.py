"""Validation of networks whose rows are pairs: does a query find its item among all items, are likenesses as given."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import distributed, nn

from modelyard.likeness import LikenessMetrics
from modelyard.metrics import Metric
from modelyard.retrieval import RetrievalMetrics, standing
from modelyard.train.contrast import ITEM
from modelyard.train.pair_rows import Pairs, TextPairs
from modelyard.train.rows import Batch, Rows
from modelyard.train.stepper import Stepper

QUERY, PARTNER = 0, 1


def validate_pairs(
    stepper: Stepper, split: Pairs | TextPairs, metric: Metric, num_rows: int, temperature: float
) -> dict[str, float]:
    """Metrics over a whole split, each rank computing its share of the vectors. A collective.

    Args:
        num_rows: that a rank computes at a time.
        temperature: that similarities are divided by, for the loss.
    """
    if isinstance(metric, LikenessMetrics):
        told = _over_ranks(stepper, split, num_rows, _likenesses)
        metric.update(told[:, 0].numpy(), told[:, 1].numpy())
        return metric.compute()
    assert isinstance(metric, RetrievalMetrics)
    cosine = isinstance(split, TextPairs)
    items = _over_ranks(stepper, split.catalogue, num_rows, lambda _, outputs: _vectors(outputs, PARTNER, cosine))
    queries = _over_ranks(stepper, split, num_rows, lambda batch, outputs: _asked(batch, outputs, cosine))
    mine = stepper.judged.of(torch.arange(len(split)))
    if stepper.counts:
        own = queries[mine, 0].long().numpy()
        metric.count(standing(queries[mine, 1:].numpy(), items.numpy(), own, temperature))
    state = torch.from_numpy(metric.state).to(stepper.device)
    distributed.all_reduce(state)
    metric.state = state.cpu().numpy()
    return metric.compute()


def _over_ranks(
    stepper: Stepper, rows: Rows, num_rows: int, answer: Callable[[Batch, torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """What ``answer`` makes of all rows, (n, k) on every rank: each computes its share, and they add up."""
    parts: list[torch.Tensor] = []
    # Equal numbers of batches: under fsdp a forward pass is a collective.
    for share in torch.arange(len(rows)).split(num_rows * stepper.judged.count):
        batch = rows.batch(stepper.judged.of(share))
        found = answer(batch, stepper.outputs(batch.features)).to(torch.float64)
        whole = found.new_zeros(len(share), found.shape[1])
        if stepper.counts:
            whole[stepper.judged.index :: stepper.judged.count] = found
        parts.append(whole)
    joined = torch.cat(parts)
    distributed.all_reduce(joined)
    return joined.cpu()


def _vectors(outputs: torch.Tensor, side: int, cosine: bool) -> torch.Tensor:
    return nn.functional.normalize(outputs[:, side], dim=-1) if cosine else outputs[:, side]


def _asked(batch: Batch, outputs: torch.Tensor, cosine: bool) -> torch.Tensor:
    """The number of the item, then the query's vector."""
    number = batch.targets[:, ITEM : ITEM + 1].to(outputs.device, outputs.dtype)
    return torch.cat([number, _vectors(outputs, QUERY, cosine)], dim=1)


def _likenesses(batch: Batch, outputs: torch.Tensor) -> torch.Tensor:
    """The cosine of each pair, and what it should be."""
    found = nn.functional.cosine_similarity(outputs[:, QUERY], outputs[:, PARTNER], dim=-1)
    return torch.stack([found, batch.targets.to(found)], dim=1)
