"""Which units and weights matter least. Tensors in, tensors out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def importance_by_activation(activations: Tensor, reading: Tensor) -> Tensor:
    """How much each hidden unit contributes to what reads it: mean |activation| times the norm of the reading weights.

    The activation criterion of Hu et al. (2016), arXiv 1607.03250, weighted as Wanda does (Sun et al. 2023,
    arXiv 2306.11695).

    Args:
        activations: (n, units), of training rows.
        reading: (out, units), weights of the layer that reads them.

    Returns:
        (units,), larger is more important.
    """
    return activations.abs().mean(dim=0) * reading.norm(dim=0)


def importance_by_weight(making: Tensor, reading: Tensor) -> Tensor:
    """The norm of the weights (units, in) that make a unit times that of the ones (out, units) that read it, after
    Li et al. (2017), arXiv 1608.08710."""
    return making.norm(dim=1) * reading.norm(dim=0)


def kept_units(importance: Tensor, fraction: float) -> Tensor:
    """Indices, in order, of what stays when that fraction of the least important units goes; at least one stays."""
    stay = max(1, len(importance) - round(fraction * len(importance)))
    return torch.sort(torch.topk(importance, stay).indices).values


def mean_contribution(reading: Tensor, means: Tensor, kept: Tensor) -> Tensor:
    """What the units that go added to the reading layer's outputs on average: (out,), for its bias.

    Args:
        reading: (out, units). means: (units,), mean activations.
    """
    gone = torch.ones(len(means), dtype=torch.bool)
    gone[kept] = False
    return reading[:, gone] @ means[gone]


def prune_smallest_(weights: Sequence[Tensor], fraction: float) -> int:
    """Set the smallest weights of all matrices together to zero, in place; returns how many (Han et al. 2015,
    arXiv 1506.02626)."""
    sizes = torch.cat([weight.detach().abs().flatten() for weight in weights])
    count = int(fraction * len(sizes))
    if not count:
        return 0
    threshold = torch.kthvalue(sizes, count).values
    with torch.no_grad():
        for weight in weights:
            weight[weight.abs() <= threshold] = 0.0
    return sum(int((weight == 0).sum()) for weight in weights)
