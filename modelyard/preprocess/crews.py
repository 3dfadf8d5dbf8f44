"""Who prepares partitions, and how the work is cut for them: plain threads here; the way to a cluster in files beside this.

A `Crew` takes partitions and returns when they lie in the store. How it does that, in processes or a cluster, is its own
affair. A `Spread` hands it the shares of the work, so that whoever asks can watch each of them.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Protocol, Self

from modelyard.catalog import Origin
from modelyard.errors import PermanentError, WorkerLost, as_told
from modelyard.preprocess.prepare import Preparation

TRIES = 3  # of one partition, by as many workers
MOST_SHARES = 50  # each is watched, and that costs some milliseconds

Order = Mapping[str, Any]


class Crew(Protocol):
    """Those who prepare partitions; a context manager that leaves nothing behind.

    Attributes:
        at_once: so many calls of `carry_out` keep all of them at work.
    """

    @property
    def at_once(self) -> int: ...

    def carry_out(self, preparations: Sequence[Preparation]) -> None:
        """Have partitions prepared; may be called from several threads.

        Raises:
            WorkerLost: those who tried one of them died or took too long, each of them.
            CancelledError: `cancel` was called meanwhile.
            ModelyardError: what one of them met.
        """
        ...

    def cancel(self) -> None:
        """Begin nothing more."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Inline:
    """The crew that is this process."""

    at_once = 1

    def __init__(self, prepare: Callable[[Preparation], object]) -> None:
        self._prepare = prepare

    def carry_out(self, preparations: Sequence[Preparation]) -> None:
        for preparation in preparations:
            self._prepare(preparation)

    def cancel(self) -> None:
        """Nothing is under way but what the caller does itself."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


@dataclass(frozen=True)
class Share:
    """Partitions that are handed to a crew together."""

    name: str
    preparations: Sequence[Preparation]


Spread = Callable[[Crew, Sequence[Share]], None]


def in_threads(crew: Crew, shares: Sequence[Share]) -> None:
    """Hand the shares to the crew, as many at a time as keep it at work.

    Raises:
        ModelyardError: of the first share that failed; those under way have ended then.
    """
    if crew.at_once == 1:
        for share in shares:
            crew.carry_out(share.preparations)
        return
    with ThreadPoolExecutor(crew.at_once) as pool:
        begun = [pool.submit(crew.carry_out, share.preparations) for share in shares]
        try:
            for one in as_completed(begun):
                one.result()
        except BaseException:
            crew.cancel()
            for one in begun:
                one.cancel()
            raise


def shares_of(preparations: Sequence[Preparation]) -> list[Share]:
    """Neighbours together, so that there are no more than `MOST_SHARES`."""
    num_shares = min(len(preparations), MOST_SHARES)
    borders = [len(preparations) * at // num_shares for at in range(num_shares + 1)] if num_shares else []
    return [
        Share(_name(preparations[start:end], start, len(preparations)), preparations[start:end])
        for start, end in itertools.pairwise(borders)
    ]


def _name(some: Sequence[Preparation], start: int, total: int) -> str:
    numbers = f"{start + 1}" if len(some) == 1 else f"{start + 1} to {start + len(some)}"
    return f"partition {numbers} of {total}: {described(some)}"


def described(preparations: Sequence[Preparation]) -> str:
    """Their files, for sentences."""
    names = [source.name for preparation in preparations for source in preparation.partition.sources]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more files" if len(names) > 3 else "")


def order_of(preparation: Preparation, origin: Origin) -> Order:
    """What `modelyard.preprocess.worker.outcome_of` takes: plain values, that may go anywhere."""
    return {"preparation": preparation.model_dump(mode="json"), "origin": asdict(origin)}


def require_done(outcome: Mapping[str, str]) -> None:
    """Raise what a worker told of.

    Raises:
        ModelyardError: of the same class and with the same sentence, or `PermanentError` for what is not ours.
    """
    if outcome:
        raise as_told(outcome["error"], outcome["message"]) or PermanentError(outcome["message"])


class Patience:
    """How long one waits for the next partition of a cluster, whichever it is: others may be before one's own."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._heard_at = seconds, time.monotonic()

    def heard(self) -> None:
        """Something was prepared."""
        self._heard_at = time.monotonic()

    @property
    def left(self) -> float:
        """Seconds that one may wait, at least 0."""
        return max(0.0, self._heard_at + self._seconds - time.monotonic())

    def check(self) -> None:
        """Raise if nothing was heard for too long.

        Raises:
            WorkerLost: so it is.
        """
        if not self.left:
            raise WorkerLost(f"no partition was prepared within {self._seconds:g} s")
