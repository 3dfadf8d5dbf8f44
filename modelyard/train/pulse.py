"""Where each rank stands, said by a thread of its own every few seconds, also while the rank itself hangs or waits.

It is no sign of life: a rank that hangs in a collective goes on saying so. The launching process keeps what was said last,
and names the ranks that do not move once a group has hung or broken.
"""

from __future__ import annotations

import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from modelyard.train.events import RankEvent

PULSE_SECONDS = 2.0
SILENT_SECONDS = 3 * PULSE_SECONDS
MOST_NAMED = 8
LIBRARIES = tuple({sysconfig.get_path(kind) for kind in ("stdlib", "platlib", "purelib")})


def start_pulse(emit: Callable[[RankEvent], None], step: Callable[[], int]) -> None:
    """Tell where the main thread is until this process ends.

    Args:
        step: how many steps this rank has begun.
    """
    threading.Thread(target=_beat, args=(emit, step), name="pulse", daemon=True).start()


def _beat(emit: Callable[[RankEvent], None], step: Callable[[], int]) -> None:
    main = threading.main_thread().ident
    while main is not None:
        frame = sys._current_frames().get(main)  # noqa: SLF001 - Python has no other way to look at another thread
        emit(RankEvent(kind="pulse", step=step(), message=place_of(frame) if frame else ""))
        del frame  # it would keep everything alive that the main thread has in its hands
        time.sleep(PULSE_SECONDS)


def place_of(frame: FrameType) -> str:
    """``function (file:line)`` of the innermost call, and of the one of Modelyard, or of the user, behind it where that is
    a library's."""
    innermost, own = _named(frame), frame
    while _is_librarys(own) and own.f_back:
        own = own.f_back
    return innermost if own is frame or _is_librarys(own) else f"{innermost} below {_named(own)}"


def _is_librarys(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(("<", *LIBRARIES))


def _named(frame: FrameType) -> str:
    path = Path(frame.f_code.co_filename)
    return f"{frame.f_code.co_name} ({path.parent.name}/{path.name}:{frame.f_lineno})"


@dataclass
class Place:
    """Of one rank: its step and where in the code, since when, and when that was said last (monotonic clock)."""

    step: int
    where: str
    since: float
    heard: float


class Places:
    """What the ranks of a group have said last.

    Args:
        expected: numbers of the ranks that will speak, where they are known.
    """

    def __init__(self, expected: Collection[int] = ()) -> None:
        self._began = time.monotonic()
        self._places: dict[int, Place] = {}
        self._expected = expected

    def hear(self, event: RankEvent) -> bool:
        """Take in a pulse; whether its rank has come on by a step."""
        now, before = time.monotonic(), self._places.get(event.rank)
        is_there = before is not None and (before.step, before.where) == (event.step, event.message)
        since = before.since if before and is_there else now
        self._places[event.rank] = Place(event.step, event.message, since, now)
        return before is not None and event.step > before.step

    def begin_again(self) -> None:
        """Another group of ranks begins."""
        self._places, self._began = {}, time.monotonic()

    def stuck(self) -> str:
        """The ranks that say nothing any more, or stand where they stood, in words; empty if all move."""
        now = time.monotonic()
        silent, standing = dict[int, str](), dict[int, str]()
        for rank in sorted({*self._expected, *self._places}):
            place = self._places.get(rank)
            if place is None:
                if now - self._began > SILENT_SECONDS:
                    silent[rank] = "has never been heard"
            elif now - place.heard > SILENT_SECONDS:
                silent[rank] = f"was last heard {now - place.heard:.0f} s ago, {_standing(place)}"
            elif now - place.since > SILENT_SECONDS:
                standing[rank] = f"has stood for {now - place.since:.0f} s {_standing(place)}"
        said = [part for part in (_said("silent", silent), _said("not coming on", standing)) if part]
        return "; ".join(said)


def _standing(place: Place) -> str:
    return f"at step {place.step} in {place.where}"


def _said(what: str, ranks: dict[int, str]) -> str:
    if not ranks:
        return ""
    named = [f"rank {rank} {where}" for rank, where in list(ranks.items())[:MOST_NAMED]]
    more = [f"and {len(ranks) - MOST_NAMED} more"] if len(ranks) > MOST_NAMED else []
    return f"{what}: {', '.join([*named, *more])}"
