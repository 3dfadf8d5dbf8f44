"""One machine, many builders, one who measures: while somebody measures nobody builds.

Locks on files of this machine hold it, whoever asks: flows, workers of several installations, benchmarks. Who waits to measure
stands in the door, so that builders end what they are at and begin nothing new: else others could build for ever.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from modelyard.errors import MachineBusy

POLL_SECONDS = 0.05
# Longer than anybody's measuring: builders wait for it, and it for their candidates under way.
MACHINE_SECONDS = 1800.0


@contextmanager
def building(seconds: float) -> Generator[None]:
    """Hold the machine together with other builders; waits while somebody measures, or waits to.

    Raises:
        MachineBusy: it did not become free within so many seconds.
    """
    wait = _Wait(seconds, "to build")
    with ExitStack() as inside:
        with _held("door", fcntl.LOCK_SH, wait):
            inside.enter_context(_held("machine", fcntl.LOCK_SH, wait))
        yield


@contextmanager
def measuring(seconds: float) -> Generator[None]:
    """Hold the machine alone; waits for builders to end their candidate.

    Raises:
        MachineBusy: it did not become free within so many seconds.
    """
    wait = _Wait(seconds, "to measure")
    with _held("door", fcntl.LOCK_EX, wait), _held("machine", fcntl.LOCK_EX, wait):
        yield


class _Wait:
    """One bound for both locks."""

    def __init__(self, seconds: float, purpose: str) -> None:
        self.seconds, self.purpose = seconds, purpose
        self.deadline = time.monotonic() + seconds


@contextmanager
def _held(name: str, mode: int, wait: _Wait) -> Generator[None]:
    path = Path(tempfile.gettempdir()) / f"modelyard-{name}-{os.getuid()}.lock"
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, mode | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > wait.deadline:
                    raise MachineBusy(
                        f"waited {wait.seconds:g} s for this machine {wait.purpose}; see {path}"
                    ) from None
                time.sleep(POLL_SECONDS)
        yield
