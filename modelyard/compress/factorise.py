"""Linear layers as two narrow ones. Tensors in, tensors out."""

from __future__ import annotations

import torch
from torch import Tensor


def singular_values(weight: Tensor) -> Tensor:
    """Of a matrix (out, in), largest first."""
    return torch.linalg.svdvals(weight.double())


def truncated_svd(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The nearest matrix of a rank, as factors: weight ~ second @ first (Eckart & Young 1936).

    Args:
        weight: (out, in).

    Returns:
        first (rank, in) and second (out, rank), each with the square roots of the singular values.
    """
    left, values, right = torch.linalg.svd(weight.double(), full_matrices=False)
    roots = values[:rank].sqrt()
    return (roots[:, None] * right[:rank]).to(weight.dtype), (left[:, :rank] * roots).to(weight.dtype)


def rank_for_energy(values: Tensor, energy: float) -> int:
    """Smallest rank that keeps that share of the sum of squares of singular values (largest first)."""
    shares = values.double().square().cumsum(0)
    return int(torch.searchsorted(shares / shares[-1], energy).item()) + 1 if shares[-1] > 0 else 1


def rank_for_fraction(outputs: int, inputs: int, fraction: float) -> int:
    """Largest rank at which two layers have at most that share of the one layer's weights; at least 1."""
    return max(1, int(fraction * outputs * inputs / (outputs + inputs)))


def principal_factors(
    weight: Tensor, bias: Tensor | None, inputs: Tensor, variance: float
) -> tuple[Tensor, Tensor, Tensor]:
    """A layer that sees its input only through the input's principal components.

    Projecting a layer's input on the components of what data makes of it, after SliceGPT (Ashkboos et al. 2024,
    arXiv 2401.15024); unlike there, the mean is taken off first and returns in the bias.

    Args:
        weight: (out, in). bias: (out,) or None.
        inputs: (n, in), what training rows put into the layer; n >= 2.
        variance: share of the inputs' variance that is kept.

    Returns:
        first (r, in), second (out, r) and bias (out,): weight @ x + bias ~ second @ (first @ x) + bias'.
    """
    wide, matrix = inputs.double(), weight.double()
    mean = wide.mean(dim=0)
    _, values, components = torch.linalg.svd(wide - mean, full_matrices=False)
    first = components[: rank_for_energy(values, variance)]
    second = matrix @ first.T
    offset = matrix @ mean - second @ (first @ mean)
    shifted = offset if bias is None else bias.double() + offset
    return first.to(weight.dtype), second.to(weight.dtype), shifted.to(weight.dtype)
