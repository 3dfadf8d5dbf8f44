"""Which device and which collective backend a rank uses: one table, one code path everywhere."""

from __future__ import annotations

import math
import os
import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import distributed

from modelyard.errors import ConfigError
from modelyard.train.device_locks import DEVICES_VARIABLE
from modelyard.train.strategy_config import DeviceName

CPU_INFO = Path("/proc/cpuinfo")


@dataclass(frozen=True, kw_only=True)
class Accelerators:
    """Those of a machine that torch can use: their kind, as torch names it, and how many; none: "" and 0."""

    kind: str = ""
    count: int = 0

    @classmethod
    def here(cls) -> Accelerators:
        """Of this machine. Nothing is allocated on them."""
        if not torch.accelerator.is_available():
            return cls()
        found = torch.accelerator.current_accelerator()
        assert found is not None
        return cls(kind=found.type, count=torch.accelerator.device_count())

    def __str__(self) -> str:
        has = f"{self.count} x {self.kind}" if self.count else "no accelerator"
        return f"torch {torch.__version__} finds {has} here, and {os.cpu_count()} processors"


def chosen_kind(name: DeviceName, accelerators: Accelerators) -> str:
    """What ranks compute on: torch's name of it.

    Raises:
        ConfigError: the machine has none of that kind.
    """
    if name == "auto":
        return accelerators.kind or "cpu"
    if name not in ("cpu", accelerators.kind):
        there = f"auto, cpu or {accelerators.kind}" if accelerators.kind else "auto or cpu"
        raise ConfigError("train.device", f"there is no {name!r}: {accelerators}; take {there}, or another machine")
    return name


def require_devices(name: DeviceName, num_ranks: int, accelerators: Accelerators) -> None:
    """Refuse ranks that this machine has no devices for; a CPU is shared.

    Raises:
        ConfigError: the kind is not there, or there are fewer than ranks.
    """
    kind = chosen_kind(name, accelerators)
    if kind != "cpu" and num_ranks > accelerators.count:
        raise ConfigError(
            "train.ranks",
            f"{num_ranks} ranks need a device each: {accelerators}; take ranks {accelerators.count}, or train.device cpu",
        )


def rank_device(name: DeviceName = "auto") -> torch.device:
    """This rank's device: its own accelerator, or the CPU.

    Raises:
        ConfigError: there is none of that kind here, or none left for this rank.
    """
    accelerators, local = Accelerators.here(), int(os.environ.get("LOCAL_RANK", "0"))
    kind = chosen_kind(name, accelerators)
    if kind == "cpu":
        return torch.device("cpu")
    require_devices(name, local + 1, accelerators)
    device = torch.device(kind, held_device(local))
    torch.accelerator.set_device_index(device.index)
    return device


def held_device(local_rank: int) -> int:
    """Number of the accelerator that is this rank's."""
    held = os.environ.get(DEVICES_VARIABLE, "")
    return [int(number) for number in held.split(",")][local_rank] if held else local_rank


def free_bytes(device: torch.device) -> float:
    """Memory of an accelerator that nobody holds; infinite where its driver does not tell."""
    try:
        return float(torch.accelerator.get_memory_info(device)[0])
    except (RuntimeError, NotImplementedError):
        return math.inf


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
