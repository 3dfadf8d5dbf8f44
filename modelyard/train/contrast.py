"""Losses of networks whose rows are pairs, (n, 2, k): pairs that belong together, or pairs of which a likeness is known.

In a batch the items of the other rows are what a query's own is told from. They are those of the whole global batch,
wherever its rows were computed: ranks gather each other's items, with gradients back to them, so that the number of ranks
changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import torch
from torch import distributed, nn

from modelyard.train.config import TrainConfig

PAIR_LOSSES = ("in_batch_softmax", "contrastive", "cosine_error")
TIMEOUT = timedelta(seconds=60)
# What a row of targets holds, float32: numbers of items are exact up to 2^24.
ITEM, LOG_FREQUENCY, WEIGHT = range(3)
MAX_ITEMS = 2**24


@dataclass(frozen=True)
class Peers:
    """The ranks that share a batch: this one's place among them, how many they are, and their group (None: all ranks)."""

    index: int = 0
    count: int = 1
    group: Any = None

    @classmethod
    def of(cls, config: TrainConfig) -> Peers:
        """As the strategy deals out rows. Every rank has to call it."""
        rank, world_size = distributed.get_rank(), distributed.get_world_size()
        if config.strategy != "parameter_server":
            return cls(rank, world_size)
        num_workers = world_size - config.parameter_server.servers
        if config.parameter_server.mode == "asynchronous" or num_workers == 1:
            return cls()
        group = distributed.new_group(list(range(num_workers)), timeout=TIMEOUT)
        return cls(rank, num_workers, group)

    def gathered(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows (n, k) of all, in the order of the global batch, which goes to ranks in turn; (m, k). The gradient of every
        rank's use of them comes back to each."""
        return rows if self.count == 1 else _Gathered.apply(rows, self)

    def places(self, num_rows: int, device: torch.device) -> torch.Tensor:
        """Where this rank's rows stand among those gathered, (n,)."""
        return torch.arange(num_rows, device=device) * self.count + self.index


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, peers: Peers) -> torch.Tensor:
        ctx.peers, ctx.num_rows = peers, len(rows)
        counts = torch.zeros(peers.count, dtype=torch.int64, device=rows.device)
        counts[peers.index] = len(rows)
        distributed.all_reduce(counts, group=peers.group)
        most, total = int(counts.max()), int(counts.sum())
        whole = rows.new_zeros(most * peers.count, rows.shape[1])
        whole[peers.index :: peers.count][: len(rows)] = rows.detach()
        distributed.all_reduce(whole, group=peers.group)  # one rank's numbers and zeros: exact
        return whole[:total]

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        peers = ctx.peers
        whole = gradients[0].contiguous().clone()
        distributed.all_reduce(whole, group=peers.group)
        return whole[peers.index :: peers.count][: ctx.num_rows], None


def similarities(outputs: torch.Tensor, peers: Peers, *, cosine: bool) -> torch.Tensor:
    """Of each query with every item of the global batch, (n, m), from outputs (n, 2, k): cosines, whatever the length of the
    vectors, or dot products. A collective."""
    if cosine:
        outputs = nn.functional.normalize(outputs, dim=-1)
    return outputs[:, 0] @ peers.gathered(outputs[:, 1]).T


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """How queries are held against the items of the global batch.

    Attributes:
        temperature: divides similarities.
        correct_popularity: take off the logarithms of frequencies.
        cosine: similarities are cosines, whatever the length of the vectors; else dot products.
    """

    peers: Peers
    temperature: float
    cosine: bool = False
    correct_popularity: bool = True

    @classmethod
    def of(cls, name: str, config: TrainConfig) -> Scoring:
        """As the loss of that name does it. Every rank has to call it."""
        return cls(
            peers=Peers.of(config),
            temperature=config.pairs.temperature,
            cosine=name == "contrastive",
            correct_popularity=config.pairs.correct_popularity,
        )

    def scores(self, outputs: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        """Of each query for every item, (n, m), to take the softmax of. A collective.

        Args:
            outputs: (n, 2, k): vectors of queries and of their items.
            told: (m, 3): the targets of all rows of the global batch.
        """
        found = similarities(outputs, self.peers, cosine=self.cosine) / self.temperature
        return found - told[:, LOG_FREQUENCY] if self.correct_popularity else found


def in_batch_softmax(outputs: torch.Tensor, targets: torch.Tensor, scoring: Scoring) -> torch.Tensor:
    """Sum over rows of the weighted cross-entropy of each query's own item among those of the batch, in nats.

    With frequencies this is the sampled softmax of Yi et al., "Sampling-Bias-Corrected Neural Modeling for Large Corpus
    Item Recommendations", RecSys 2019; without, the multiple negatives ranking loss of Henderson et al. 2017 (arXiv
    1705.00652), or InfoNCE (van den Oord et al. 2018, arXiv 1807.03748). An item that stands in the batch again is not
    held against its own.

    Args:
        outputs: (n, 2, k): vectors of queries and of their items.
        targets: (n, 3): number of the item, the logarithm of its frequency among rows (0: no correction), the row's weight.
    """
    told = scoring.peers.gathered(targets)
    scores = scoring.scores(outputs, told)
    own = scoring.peers.places(len(outputs), outputs.device)
    again = targets[:, ITEM][:, None] == told[:, ITEM]
    again[torch.arange(len(own), device=own.device), own] = False
    losses = nn.functional.cross_entropy(scores.masked_fill(again, -math.inf), own, reduction="none")
    return (losses * targets[:, WEIGHT]).sum()


def cosine_error(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Sum over rows of the squared difference between the cosine of a pair and the likeness that people gave it (Reimers and
    Gurevych 2019, arXiv 1908.10084, section 3).

    Args:
        outputs: (n, 2, k).
        targets: (n,), brought to 0..1 or -1..1.
    """
    found = nn.functional.cosine_similarity(outputs[:, 0], outputs[:, 1], dim=-1)
    return nn.functional.mse_loss(found, targets, reduction="sum")


def pair_loss(name: str, config: TrainConfig) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The loss of that name as this rank computes it. Every rank has to call it."""
    if name == "cosine_error":
        return cosine_error
    return partial(in_batch_softmax, scoring=Scoring.of(name, config))
