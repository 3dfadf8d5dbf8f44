"""Which device and which collective backend a rank uses: one table, one code path everywhere."""

from __future__ import annotations

import os

import torch
from torch import distributed


def rank_device() -> torch.device:
    """This rank's device: its own accelerator where the machine has them, else the CPU."""
    if not torch.accelerator.is_available():
        return torch.device("cpu")
    kind = torch.accelerator.current_accelerator()
    assert kind is not None
    device = torch.device(kind.type, int(os.environ.get("LOCAL_RANK", "0")))
    torch.accelerator.set_device_index(device.index)
    return device


def backend_for(device: torch.device) -> str:
    """gloo for the CPU, nccl for CUDA, xccl for Intel GPUs, as torch itself maps them."""
    return distributed.get_default_backend_for_device(device)
