"""What an opponent could do: small changes of the network's input, chosen to hurt.

With the trained network the direction is its gradient; without, tries decide. Either way the rows that come out are
answered again by the form that will be served.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import nn

PGD_STEPS = 10
PGD_STRIDE = 2.5  # steps together may cross the reach this many times: Madry et al., 2018, section C
NUM_TRIES = 20

# From network input (n, width) to the loss of each row (n,).
RowLoss = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Reach:
    """How far an opponent may go.

    Attributes:
        step: for each input the largest change, (width,); 0 where a small change has no meaning, as in a category.
        low, high: for each input the values that rows really have, (width,); none is left.
    """

    step: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def of(cls, inputs: np.ndarray, movable: np.ndarray, strength: float) -> Reach:
        """A fraction ``strength`` of each input's own deviation over ``inputs`` (n, width), where it is ``movable``."""
        step = np.where(movable, strength * inputs.std(axis=0), 0.0)
        return cls(step.astype(inputs.dtype), inputs.min(axis=0), inputs.max(axis=0))

    def clip(self, changed: np.ndarray, inputs: np.ndarray) -> np.ndarray:
        """The nearest rows to ``changed`` that an opponent can reach from ``inputs``."""
        near = np.clip(changed, inputs - self.step, inputs + self.step)
        return np.clip(near, self.low, self.high).astype(inputs.dtype)


def fgsm(network: nn.Module, inputs: np.ndarray, targets: np.ndarray, reach: Reach) -> np.ndarray:
    """One step along the sign of the gradient (Goodfellow et al., 2015).

    Args:
        inputs: (n, width) float32.
        targets: (n,) class numbers, or float32 of a regression.

    Returns:
        The changed rows, (n, width) float32.
    """
    return reach.clip(inputs + reach.step * np.sign(_gradient(network, inputs, targets)), inputs)


def pgd(
    network: nn.Module, inputs: np.ndarray, targets: np.ndarray, reach: Reach, rng: np.random.Generator
) -> np.ndarray:
    """Several smaller steps from a random start, each brought back within reach (Madry et al., 2018)."""
    stride = reach.step * (PGD_STRIDE / PGD_STEPS)
    changed = reach.clip(inputs + reach.step * rng.uniform(-1, 1, inputs.shape), inputs)
    for _ in range(PGD_STEPS):
        changed = reach.clip(changed + stride * np.sign(_gradient(network, changed, targets)), inputs)
    return changed


def random_signs(row_loss: RowLoss, inputs: np.ndarray, reach: Reach, rng: np.random.Generator) -> np.ndarray:
    """For each row the worst of `NUM_TRIES` corners of its reach: weaker than a gradient, and needs none."""
    worst, height = inputs, row_loss(inputs)
    for _ in range(NUM_TRIES):
        tried = reach.clip(inputs + reach.step * rng.choice([-1.0, 1.0], inputs.shape), inputs)
        found = row_loss(tried)
        is_worse = found > height
        worst = np.where(is_worse[:, None], tried, worst)
        height = np.where(is_worse, found, height)
    return worst


def _gradient(network: nn.Module, inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Of each row's loss with respect to its inputs, (n, width)."""
    import torch
    from torch.nn import functional

    rows = torch.from_numpy(np.ascontiguousarray(inputs)).requires_grad_()
    outputs, truth = network(rows), torch.tensor(targets)
    if truth.dtype == torch.int64:
        loss = functional.cross_entropy(outputs, truth, reduction="sum")
    else:
        loss = functional.mse_loss(outputs.reshape(-1), truth, reduction="sum")
    return torch.autograd.grad(loss, rows)[0].numpy()
