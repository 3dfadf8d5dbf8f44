"""One machine, many builders, one who measures: while somebody measures nobody builds.

A lock on a file of this machine holds it, whoever asks: flows, workers of several installations, benchmarks.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from modelyard.errors import MachineBusy

POLL_SECONDS = 0.05


@contextmanager
def building(seconds: float) -> Generator[None]:
    """Hold the machine together with other builders; waits while somebody measures."""
    with _held(fcntl.LOCK_SH, seconds, "to build"):
        yield


@contextmanager
def measuring(seconds: float) -> Generator[None]:
    """Hold the machine alone; waits for builders to end their candidate.

    Raises:
        MachineBusy: it did not become free within so many seconds.
    """
    with _held(fcntl.LOCK_EX, seconds, "to measure"):
        yield


@contextmanager
def _held(mode: int, seconds: float, purpose: str) -> Generator[None]:
    path = Path(tempfile.gettempdir()) / f"modelyard-machine-{os.getuid()}.lock"
    deadline = time.monotonic() + seconds
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, mode | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise MachineBusy(f"waited {seconds:g} s for this machine {purpose}; see {path}") from None
                time.sleep(POLL_SECONDS)
        yield
