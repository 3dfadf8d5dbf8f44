"""Arithmetic in fp32, bf16 or fp16: what autocast and the loss scale do around one step.

Weights and optimizer state are fp32 throughout. fsdp casts in its own mixed-precision policy (`parallelize.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.optim import Optimizer

from modelyard.train.config import PrecisionName

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """Autocast, and for fp16 the loss scale (Micikevicius et al. 2018, arXiv 1710.03740)."""

    def __init__(self, name: PrecisionName, device: torch.device, *, cast_by_strategy: bool = False) -> None:
        self._device = device
        self._dtype = DTYPES[name]
        self._casts = name != "fp32" and not cast_by_strategy
        self._scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")

    def autocast(self) -> AbstractContextManager[Any]:
        if not self._casts:
            return nullcontext()
        return torch.autocast(self._device.type, dtype=self._dtype)

    def backward(self, loss: torch.Tensor, factor: float) -> None:
        """Gradients of ``loss * factor``; the factor enters as the gradient to start from, which saves two kernels."""
        scaled = self._scaler.scale(loss)
        scaled.backward(torch.full_like(scaled, factor))

    def unscale_(self, optimizers: Sequence[Optimizer]) -> None:
        """Bring the gradients back to their own size, before they are clipped or looked at."""
        for optimizer in optimizers:
            self._scaler.unscale_(optimizer)

    def step(self, optimizers: Sequence[Optimizer]) -> None:
        """Step each optimizer; with fp16 a step whose gradients overflowed is left out and the scale lowered."""
        for optimizer in optimizers:
            self._scaler.step(optimizer)
        self._scaler.update()

    def state(self) -> dict[str, Any]:
        return self._scaler.state_dict()

    def load(self, state: dict[str, Any]) -> None:
        if state:
            self._scaler.load_state_dict(state)
