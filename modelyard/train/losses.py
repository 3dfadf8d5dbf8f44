"""Losses by the name that a task kind gives: tensors in, the sum over rows out."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn


def mean_squared_error(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Sum over rows of each row's mean squared error over its outputs."""
    width = math.prod(targets.shape[1:])
    return nn.functional.mse_loss(outputs.reshape(targets.shape), targets, reduction="sum") / width


def cross_entropy(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Sum over rows, in nats; outputs (n, k) raw, targets (n,) class numbers."""
    return nn.functional.cross_entropy(outputs, targets, reduction="sum")


Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy, "mean_squared_error": mean_squared_error}
