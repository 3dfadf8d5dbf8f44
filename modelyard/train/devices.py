"""Which device and which collective backend a rank uses: one table, one code path everywhere."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch
from torch import distributed

CPU_INFO = Path("/proc/cpuinfo")


def rank_device() -> torch.device:
    """This rank's device: its own accelerator where the machine has them, else the CPU."""
    if not torch.accelerator.is_available():
        return torch.device("cpu")
    kind = torch.accelerator.current_accelerator()
    assert kind is not None
    device = torch.device(kind.type, int(os.environ.get("LOCAL_RANK", "0")))
    torch.accelerator.set_device_index(device.index)
    return device


def facts_of(devices: Sequence[tuple[str, float]]) -> dict[str, str]:
    """What ranks run on, in words: names with how many there are, the memory of the smallest, torch's version.

    Args:
        devices: `own_facts` of each rank.
    """
    counted = Counter(name for name, _ in devices)
    return {
        "devices": ", ".join(f"{count} x {name}" for name, count in sorted(counted.items())),
        "device_memory_gb": f"{min(memory for _, memory in devices) / 1e9:.1f}",
        "torch": torch.__version__,
    }


def own_facts(device: torch.device) -> tuple[str, float]:
    """Name of this rank's device, and its memory in bytes; a CPU's is that of the machine."""
    if device.type == "cpu":
        return f"cpu ({_cpu_name()})", float(psutil.virtual_memory().total)
    module = torch.get_device_module(device)
    properties = module.get_device_properties(device)
    return f"{device.type} ({properties.name})", float(properties.total_memory)


def _cpu_name() -> str:
    """As the kernel has it, where it has one."""
    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def backend_for(device: torch.device) -> str:
    """gloo for the CPU, nccl for CUDA, xccl for Intel GPUs, as torch itself maps them."""
    return distributed.get_default_backend_for_device(device)
