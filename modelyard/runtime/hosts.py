"""What a form needs of the machine that executes it, checked wherever it is opened."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from modelyard.errors import HostUnfit, MissingExtra

# Instruction set -> what Linux calls it in /proc/cpuinfo; any one of them will do.
INSTRUCTIONS: dict[str, frozenset[str]] = {
    "avx2": frozenset({"avx2"}),
    "avx512": frozenset({"avx512f"}),
    "vnni": frozenset({"avx512_vnni", "avx_vnni", "asimddp"}),
    "bf16": frozenset({"avx512_bf16", "amx_bf16", "bf16"}),
}
# Distributions that an engine's package name does not tell, and the extra that brings it.
EXTRAS = {"openvino": "openvino"}


def require_host(form: str, engine: str, instructions: Iterable[str]) -> None:
    """Refuse a form that this machine cannot execute as it was meant to be.

    Raises:
        MissingExtra: its engine is not installed.
        HostUnfit: an instruction set is missing.
    """
    if find_spec(engine) is None:
        raise MissingExtra(engine, EXTRAS.get(engine, engine), f"the form {form!r}")
    if missing := [name for name in instructions if not has_instruction(name)]:
        raise HostUnfit(
            f"the form {form!r} was made and judged with the instruction set {', '.join(missing)}, which this machine"
            f" ({platform.machine()}) lacks; serve another form (rollout.form), or compress again on such a machine"
        )


def require_cores(form: str, threads: int) -> None:
    """Refuse a form that would be slower here than it was measured.

    Raises:
        HostUnfit: this process may use fewer cores than the form has threads.
    """
    cores = len(os.sched_getaffinity(0))
    if threads > cores:
        raise HostUnfit(
            f"the form {form!r} was measured with {threads} threads, and this process may use {cores} cores; serve it where"
            f" there are as many, or compress again with compress.measure.threads={cores}"
        )


def has_instruction(name: str) -> bool:
    """Whether this processor has an instruction set of `INSTRUCTIONS`; of one that is not known: no."""
    return bool(INSTRUCTIONS.get(name, frozenset()) & cpu_flags())


@cache
def cpu_flags() -> frozenset[str]:
    """The processor's features as Linux names them; none where it does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    found = (line.partition(":")[2] for line in lines if line.partition(":")[0].strip() in {"flags", "Features"})
    return frozenset(next(found, "").split())


def describe_host() -> dict[str, object]:
    """Processor, its useful instruction sets and cores, for the record of a measurement."""
    return {
        "machine": platform.machine(),
        "system": platform.platform(terse=True),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "instructions": [name for name in INSTRUCTIONS if has_instruction(name)],
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
