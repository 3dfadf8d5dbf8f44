"""Losses by the name that a task kind gives: tensors in, the sum over rows out."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from modelyard.task_kinds import NO_TOKEN


def mean_squared_error(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Sum over rows of each row's mean squared error over its outputs."""
    width = math.prod(targets.shape[1:])
    return nn.functional.mse_loss(outputs.reshape(targets.shape), targets, reduction="sum") / width


def cross_entropy(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Sum over rows, in nats; outputs (n, k) raw, targets (n,) class numbers."""
    return nn.functional.cross_entropy(outputs, targets, reduction="sum")


def token_losses(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood (n, t) of each next token, in nats; 0 where the target is `NO_TOKEN`."""
    losses = nn.functional.cross_entropy(
        outputs.flatten(0, 1), targets.flatten(), ignore_index=NO_TOKEN, reduction="none"
    )
    return losses.view(targets.shape)


def next_token(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Sum over rows of each sequence's mean loss a token, in nats; outputs (n, t, vocabulary) raw, targets (n, t)."""
    num_tokens = (targets != NO_TOKEN).sum(1).clamp(min=1)
    return (token_losses(outputs, targets).sum(1) / num_tokens).sum()


Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
LOSSES: dict[str, Loss] = {
    "cross_entropy": cross_entropy,
    "mean_squared_error": mean_squared_error,
    "next_token": next_token,
    "token_tags": next_token,  # the same arithmetic: a row counts as one, however many of its tokens carry a tag
    "masked_token": next_token,
}
# Whose outputs are an answer for each token, (n, t, k).
PER_TOKEN = frozenset({"next_token", "token_tags", "masked_token"})
# In torch: the scores are thousands of numbers a token, and validation asks for no more than the right one's.
REDUCED = frozenset({"next_token", "masked_token"})
