"""What a step costs: arithmetic as a share of what the device can do, and memory."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from modelyard.train.config import PrecisionName
from modelyard.train.precision import DTYPES

STATUS = Path("/proc/self/status")
PROBE_SIZE = 1024
PROBE_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Floating-point operations of one row, forward and back, and how many a second this rank's device makes."""

    flops_per_row: float
    peak_flops: float
    tokens_per_row: int

    def figures(self, rows_per_second: float, num_ranks: int) -> dict[str, float]:
        """Model FLOPs utilisation (Chowdhery et al. 2022, arXiv 2204.02311), and tokens a second where rows are
        tokens."""
        used = rows_per_second * self.flops_per_row / (num_ranks * self.peak_flops)
        tokens = {"tokens_per_second": rows_per_second * self.tokens_per_row} if self.tokens_per_row else {}
        return {"mfu": used, **tokens}


class Pass(NamedTuple):
    """A forward pass that was tried: shape of what came out, and its floating-point operations."""

    shape: tuple[int, ...]
    flops: int


def try_out(network: nn.Module, example: torch.Tensor) -> Pass:
    """One forward pass of a network that no strategy has touched yet, as in evaluation; it moves no random stream.

    Args:
        example: some rows of network input, on the network's device, which may be torch's meta device.
    """
    # torch 2.13 counts attention on GPUs alone.
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # noqa: SLF001 - how torch names it
    counter = FlopCounterMode(display=False, custom_mapping={attention: _attention_flops})
    was_training, generators = network.training, torch.get_rng_state()
    with counter, torch.no_grad():
        outputs = network.eval()(example)
    network.train(was_training)
    torch.set_rng_state(generators)
    return Pass(tuple(outputs.shape), counter.get_total_flops())


def costs_of(tried: Pass, example: torch.Tensor, precision: PrecisionName, device: torch.device) -> Costs:
    """What a step costs, by a pass over ``example``, and what the device where it will be made can do."""
    return Costs(
        flops_per_row=3.0 * tried.flops / len(example),  # the way back costs twice the way there
        peak_flops=_peak_flops(device, DTYPES[precision]),
        tokens_per_row=example.shape[1] if example.dtype == torch.int64 else 0,
    )


def _attention_flops(
    queries: torch.Size, keys: torch.Size, values: torch.Size, *_: object, out_shape: object = None, **__: object
) -> int:
    """Two matrix products a head; shapes (n, heads, t, width of a head). What causality spares is not taken off."""
    del out_shape
    rows, heads, length, width = queries
    return 2 * rows * heads * length * keys[2] * (width + values[3])


class CpuWatch:
    """Processor time of this process since it was last asked for."""

    def __init__(self) -> None:
        self._used, self._now = time.process_time(), time.monotonic()

    def fraction(self) -> float:
        """In cores: 1 is one that was never idle."""
        used, now = time.process_time(), time.monotonic()
        found = (used - self._used) / max(now - self._now, 1e-6)
        self._used, self._now = used, now
        return found


def memory_bytes(device: torch.device) -> float:
    """The most that this process has held: on its accelerator where it has one, else altogether."""
    if device.type == "cpu":
        return _most_resident()
    return float(torch.get_device_module(device).max_memory_allocated(device))


def _most_resident() -> float:
    """The kernel's own count for this program: `getrusage` goes on with that of the process which started it."""
    if STATUS.is_file():
        kilobytes = next(line.split()[1] for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return float(kilobytes) * 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def _peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product in this dtype: the best of a tenth of a second."""
    one = torch.ones(PROBE_SIZE, PROBE_SIZE, device=device, dtype=dtype)
    best, ends = 0.0, time.perf_counter() + PROBE_SECONDS
    while best == 0.0 or time.perf_counter() < ends:
        began = time.perf_counter()
        float((one @ one)[0, 0])  # reading a number waits for the device
        best = max(best, 2.0 * PROBE_SIZE**3 / (time.perf_counter() - began))
    return best
