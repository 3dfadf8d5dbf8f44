"""The endpoint's parent: owns the listening socket, and the routers that accept from it. The standard library alone.

    SIGHUP            a new router is started; once it can answer, the one before answers what it has and leaves
    SIGTERM, SIGINT   every router answers what it has and leaves, then this process does
    a router dies     another one is started at once; clients that connect meanwhile wait in the socket's queue

It imports nothing that could fail and knows nothing of models, so that there is always somebody who holds the socket.
The first router binds it, as that takes settings, and hands a copy over; later ones inherit it.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

READY_SECONDS = 120.0  # a successor that cannot answer by then is ended, and the router before stays
LEAVE_SECONDS = 100.0  # above `Limits.handover_seconds`
STOP_SECONDS = 9.0  # above `Limits.shutdown_seconds`, below what the embedded stack's supervisor waits
STEADY_SECONDS = 10.0  # a router that lived so long is started again without a pause
LONGEST_PAUSE_SECONDS = 5.0
# What a router says: it bound the socket (which comes along), and it can answer.
BOUND, READY = b"B", b"R"


@dataclass(frozen=True)
class Inheritance:
    """What a router gets from its parent.

    Attributes:
        control: the connection to the parent; it closes when the parent dies.
        listener: the listening socket, where an earlier router has bound it.
        is_successor: whether another router answers until this one can.
    """

    control: socket.socket
    listener: socket.socket | None
    is_successor: bool


class RouterProcess:
    """One router, as its parent sees it. ``deadline``: when it is ended the hard way, if it is still there."""

    def __init__(self, pid: int, control: socket.socket) -> None:
        self.pid = pid
        self.control = control
        self.born = time.monotonic()
        self.deadline: float | None = None

    def end(self, number: signal.Signals, within_seconds: float) -> None:
        self.deadline = time.monotonic() + within_seconds
        os.kill(self.pid, number)


class Keeper:
    """`run` returns the status to exit with; in the processes it forks, `run_router` has the last word."""

    def __init__(self, run_router: Callable[[Inheritance], None]) -> None:
        self._run_router = run_router
        self._listener: socket.socket | None = None
        self._routers: dict[int, RouterProcess] = {}
        self._current: RouterProcess | None = None
        self._successor: RouterProcess | None = None
        self._start_at: float | None = 0.0
        self._pause_seconds = 0.0
        self._exit_status: int | None = None
        self._is_stopping = False
        self._selector = selectors.DefaultSelector()
        self._wakes, self._wake = socket.socketpair()

    def run(self) -> int:
        self._wakes.setblocking(False)
        self._wake.setblocking(False)
        signal.set_wakeup_fd(self._wake.fileno())
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, _ignore)
        self._selector.register(self._wakes, selectors.EVENT_READ, None)
        while True:
            self._mind_the_clock()
            for key, _ in self._selector.select(self._seconds_to_wait()):
                if key.data is None:
                    self._take_signals()
                else:
                    self._hear(key.data)
            self._reap()
            if self._exit_status is not None and not self._routers:
                return self._exit_status

    # -- what happens ---------------------------------------------------------------------------------

    def _take_signals(self) -> None:
        for number in self._wakes.recv(4096):
            if number in (signal.SIGTERM, signal.SIGINT):
                self._stop()
            elif number == signal.SIGHUP:
                self._replace()

    def _hear(self, router: RouterProcess) -> None:
        """A word of a router, or that it hung up (its end is seen by `_reap`)."""
        said, descriptors, _, _ = socket.recv_fds(router.control, 1, 1)
        if said == BOUND:
            self._listener = socket.socket(fileno=descriptors[0])
        elif said == READY and router is self._successor:
            self._hand_over(router)
        elif not said:
            self._selector.unregister(router.control)

    def _replace(self) -> None:
        if self._is_stopping or self._successor or not self._current:
            _say("a router is being started or stopped already")
            return
        self._successor = self._start(is_successor=True)
        self._successor.deadline = time.monotonic() + READY_SECONDS

    def _hand_over(self, successor: RouterProcess) -> None:
        successor.deadline = None
        if self._current:
            _say(f"router {successor.pid} takes over from {self._current.pid}")
            self._current.end(signal.SIGUSR1, LEAVE_SECONDS)
        self._current, self._successor = successor, None

    def _stop(self) -> None:
        if self._is_stopping:
            return
        self._is_stopping, self._start_at, self._exit_status = True, None, 0
        if self._listener:
            self._listener.close()
        for router in self._routers.values():
            router.end(signal.SIGTERM, STOP_SECONDS)

    def _reap(self) -> None:
        while self._routers:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            if router := self._routers.pop(pid, None):
                self._bury(router, os.waitstatus_to_exitcode(status))

    def _bury(self, router: RouterProcess, status: int) -> None:
        if router.control in {key.fileobj for key in self._selector.get_map().values()}:
            self._selector.unregister(router.control)
        router.control.close()
        if self._is_stopping:
            self._exit_status = max(self._exit_status or 0, abs(status))
        elif router is self._successor:
            self._successor = None
            _say(f"the new router {router.pid} ended with {status} before it could answer; the one before stays")
        elif router is self._current:
            self._mourn(router, status)

    def _mourn(self, router: RouterProcess, status: int) -> None:
        """The router that accepts is gone."""
        self._current, self._successor = self._successor, None
        if self._listener is None:
            self._exit_status = abs(status) or 1  # it said why it cannot listen
        elif self._current is None:
            lived = time.monotonic() - router.born
            self._pause_seconds = 0.0 if lived > STEADY_SECONDS else min(
                LONGEST_PAUSE_SECONDS, 2 * self._pause_seconds or 0.05
            )  # fmt: skip
            self._start_at = time.monotonic() + self._pause_seconds
            _say(f"router {router.pid} ended with {status}; starting another")

    # -- time -----------------------------------------------------------------------------------------

    def _mind_the_clock(self) -> None:
        now = time.monotonic()
        if self._start_at is not None and now >= self._start_at:
            self._start_at = None
            self._current = self._start()
        for router in self._routers.values():
            if router.deadline and now >= router.deadline:
                _say(f"router {router.pid} takes too long; it is killed")
                router.end(signal.SIGKILL, STOP_SECONDS)

    def _seconds_to_wait(self) -> float | None:
        times = [router.deadline for router in self._routers.values() if router.deadline]
        times += [self._start_at] if self._start_at is not None else []
        return max(0.0, min(times) - time.monotonic()) if times else None

    # -- processes ------------------------------------------------------------------------------------

    def _start(self, *, is_successor: bool = False) -> RouterProcess:
        """Fork a router. This process has one thread and has loaded next to nothing, so the copy is as good as new."""
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            ours.close()
            self._become_router(Inheritance(theirs, self._listener, is_successor))
        theirs.close()
        router = self._routers[pid] = RouterProcess(pid, ours)
        self._selector.register(ours, selectors.EVENT_READ, router)
        return router

    def _become_router(self, inheritance: Inheritance) -> None:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a closed terminal says it to everybody
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        self._selector.close()
        self._wakes.close()
        self._wake.close()
        for other in self._routers.values():
            other.control.close()
        self._run_router(inheritance)
        sys.exit(0)


def _ignore(number: int, frame: object) -> None:
    """The number arrives over the wake-up socket."""


def _say(sentence: str) -> None:
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    print(f"{now},000 INFO modelyard.serve.keeper: {sentence}", file=sys.stderr, flush=True)
