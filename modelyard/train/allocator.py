"""How a rank's process keeps memory that it has freed.

A step of a network allocates and frees blocks of many megabytes. glibc gives those above 32 MB back to the kernel each time,
and gets them anew page by page: for a decoder of 17 million weights that was a quarter of a step on a CPU. Ranks keep them
instead, which takes at their peak about a fifth more memory (benchmarks/README.md).
"""

from __future__ import annotations

import os
from collections.abc import Mapping

# Before it, the larger of these is ignored, and the default is then worse than none.
FIRST_GLIBC = (2, 35)
KEPT_BLOCK_BYTES = 2**30  # larger ones still go back at once
KEPT_BYTES = 2**32  # at the end of the heap


def allocator_variables(given: Mapping[str, str]) -> dict[str, str]:
    """Environment for a rank; none where ``given`` chooses an allocator or sets this one, or where there is no such glibc."""
    chosen = any(name.startswith("MALLOC_") or name in {"GLIBC_TUNABLES", "LD_PRELOAD"} for name in given)
    if chosen or _glibc() < FIRST_GLIBC:
        return {}
    return {"MALLOC_MMAP_THRESHOLD_": str(KEPT_BLOCK_BYTES), "MALLOC_TRIM_THRESHOLD_": str(KEPT_BYTES)}


def _glibc() -> tuple[int, ...]:
    """Version of the C library, or none where it is another."""
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    except (ValueError, OSError):
        return ()
    return tuple(int(part) for part in version.split(".") if part.isdigit()) if name == "glibc" else ()
