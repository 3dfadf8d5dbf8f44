"""What ranks tell the process that launched them: one JSON object a line, one schema.

Ranks only emit; the launching process is the one writer of progress, logs and metrics.
"""

from __future__ import annotations

import os
import threading
import time
from typing import IO, Literal

from pydantic import Field, ValidationError

from modelyard.artifacts import Frozen

EventKind = Literal["started", "progress", "validation", "checkpoint", "warning", "finished", "failed", "pulse"]


class RankEvent(Frozen):
    """One thing that happened in a rank.

    Attributes:
        kind: ``started`` (group is up), ``progress`` (at this step; `values` may hold figures), ``validation``
            (`values` hold its metrics), ``checkpoint`` (state is durable), ``warning`` (something to know),
            ``finished`` (`values` hold the kept metrics, `message` the rule that stopped it), ``failed``, ``pulse`` (of
            every rank, to the process that launched it: at this step, `message` says where in the code).
        step: optimizer steps done since the beginning of training, restarts included.
        epoch: epochs completed.
        values: numbers: ``train_loss``, ``accuracy``, ``rows_per_second``, ``gradient_norm``, ``world_size``, ...
        about: for ``started``: what the ranks run on, in words: ``devices``, ``device_memory_gb`` of each, ``torch``.
        message: for people; for ``failed`` the error's sentence.
        error: for ``failed``: name of the exception class in `modelyard.errors`, or the Python class.
        permanent: for ``failed``: a restart would meet the same error again.
    """

    kind: EventKind
    rank: int = 0
    time: float = Field(default_factory=time.time)
    step: int = 0
    epoch: int = 0
    values: dict[str, float] = Field(default_factory=dict)
    about: dict[str, str] = Field(default_factory=dict)
    message: str = ""
    error: str | None = None
    permanent: bool = False


def rank_figure(rank: int, name: str) -> str:
    """What a figure of one rank is called among the values of an event."""
    return f"rank_{rank}/{name}"


def is_rank_figure(name: str) -> bool:
    """Whether a value of an event is one rank's own."""
    return name.startswith("rank_") and "/" in name


class EventWriter:
    """The event channel of a rank: the standard output it was started with, and nothing else may write there."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._lock = threading.Lock()  # checkpoints are announced by the thread that saved them
        self._channel: IO[str] = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)  # what libraries and users print goes to the log instead

    def pass_on(self, line: bytes) -> None:
        """Repeat another rank's line as it is."""
        with self._lock:
            self._channel.write(line.decode(errors="replace").rstrip("\n") + "\n")

    def emit(self, event: RankEvent) -> None:
        # One write call a line: lines of several ranks must not mix within the shared pipe.
        line = event.model_copy(update={"rank": self._rank}).model_dump_json() + "\n"
        with self._lock:
            self._channel.write(line)


def parse_event(line: bytes) -> RankEvent | None:
    """The event on a line, or None for anything else that found its way there."""
    if not line.startswith(b"{"):
        return None
    try:
        return RankEvent.model_validate_json(line)
    except ValidationError:
        return None
