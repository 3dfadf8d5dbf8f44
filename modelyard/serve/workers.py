"""Where models are executed: the `WorkerPool` protocol, and the local pool of subprocesses behind unix sockets.

The router knows only the two protocols, so that Ray handles (`ray_workers`, or anything else) can take the subprocesses' place.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import orjson

from modelyard.errors import DataError, EndpointUnavailable, ModelyardError
from modelyard.revisions import ServedVersion
from modelyard.serve.limits import Limits
from modelyard.serve.patience import Patience
from modelyard.serve.starting import ChildProcess, StartedProcess, start_worker
from modelyard.serve.unread import Answered, Call, pack_call, unpack_answered
from modelyard.serve.wire import FrameReader, Kind, Tensor, frame, pack_tensors, unpack_tensors
from modelyard.serve.worker_info import WorkerInfo, worker_info

logger = logging.getLogger(__name__)

WEIGH_SECONDS = 0.1  # between two looks at a worker's memory
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
STOP_SECONDS = 2.0  # between hanging up on an idle worker and killing it
END_SECONDS = STOP_SECONDS + 3.0  # for who waits until workers that were just being started are gone


Keep = Callable[[], Path]


class WorkerLost(EndpointUnavailable):
    """A worker died, or was killed because it hung, before it answered."""


class WorkerHandle(Protocol):
    """One loaded version. Where it starts workers again by itself, it says so by ``on_respawn``."""

    info: WorkerInfo
    lost: asyncio.Event
    on_respawn: Callable[[], None] | None

    @property
    def pid(self) -> int | None: ...

    async def infer(self, rows: np.ndarray) -> dict[str, Tensor]:
        """Raw feature rows (n, width) to named answers of n rows. Repeatable without effect.

        Raises:
            WorkerLost: it died; another may be asked.
            DataError: the model refuses these rows.
        """
        ...

    async def read(self, call: Call) -> Answered:
        """The same for requests as they came: what each of them is told.

        Raises:
            WorkerLost, DataError: as above.
        """
        ...

    def kill(self) -> None:
        """End it now, whatever it is doing."""
        ...

    async def stop(self) -> None:
        """End it, and return when it is gone."""
        ...


class WorkerPool(Protocol):
    """Starts workers."""

    async def spawn(self, version: ServedVersion, folder: Path, keep: Keep | None = None) -> WorkerHandle:
        """A worker with the package in ``folder`` loaded and warm.

        Args:
            keep: gives the folder again, verified anew: for a handle that starts workers itself later.

        Raises:
            DataError: the package cannot be loaded.
            WorkerLost: the worker died, or took too long, while loading it.
        """
        ...


class SubprocessPool:
    """Workers as processes of this machine, one thread of inference each; one that holds more memory than ``max_bytes`` is
    killed."""

    def __init__(self, limits: Limits, first: StartedProcess | None = None, max_bytes: int | None = None) -> None:
        self._limits = limits
        self._max_bytes = max_bytes
        self._first = first

    async def spawn(self, version: ServedVersion, folder: Path, keep: Keep | None = None) -> SubprocessWorker:  # noqa: ARG002 (it is one process)
        started = self._take_first() or start_worker()
        ours = started.connection
        patience = Patience(self._limits.stall_seconds, self._limits.hang_seconds)
        worker = SubprocessWorker(started.process, patience, self._max_bytes)
        ours.setblocking(False)
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: worker, sock=ours)
            async with asyncio.timeout(self._limits.load_seconds):
                await worker.load(folder, version.form)
        except TimeoutError:
            await worker.abandon()
            raise WorkerLost(f"version {version.version} did not load in {self._limits.load_seconds:g} s") from None
        except BaseException:
            await worker.abandon()
            raise
        return worker

    def _take_first(self) -> StartedProcess | None:
        """The worker that was started with the process itself, unless it is used or dead."""
        first, self._first = self._first, None
        return first if first and first.process.poll() is None else None


class SubprocessWorker(asyncio.Protocol):
    """The router's end of one worker process."""

    def __init__(self, process: ChildProcess, patience: Patience, max_bytes: int | None) -> None:
        self.lost = asyncio.Event()
        self.on_respawn: Callable[[], None] | None = None
        self.info = WorkerInfo(columns=[], outputs=[])
        self._process = process
        self._patience = patience
        self._max_bytes = max_bytes
        self._weighing: asyncio.TimerHandle | None = None
        self._had_bytes = 0  # when it was killed for it
        self._owed_bytes = 0
        self._loop = asyncio.get_running_loop()
        self._reader = FrameReader()
        self._numbers = count(1)
        # Number 0 waits for READY.
        self._owed: dict[int, asyncio.Future[Any]] = {0: self._loop.create_future()}
        self._transport: asyncio.Transport | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid

    async def load(self, folder: Path, form: str) -> None:
        """Have it load a package, and wait until it can answer."""
        if self._transport is None:
            raise self._loss()
        self._transport.write(frame(0, Kind.LOAD, orjson.dumps({"folder": str(folder), "form": form})))
        self.info = await asyncio.shield(self._owed[0])

    async def infer(self, rows: np.ndarray) -> dict[str, Tensor]:
        return await self._ask(Kind.INFER, pack_tensors({"features": rows}))

    async def read(self, call: Call) -> Answered:
        return await self._ask(Kind.READ, pack_call(call))

    async def _ask(self, kind: Kind, payload: bytes) -> Any:
        if self._transport is None or self.lost.is_set():
            raise self._loss()
        number = next(self._numbers)
        answer = self._owed[number] = self._loop.create_future()
        self._transport.write(frame(number, kind, payload))
        began, owed = self._loop.time(), self._owed_bytes + len(payload)  # it answers one call after the other
        self._owed_bytes = owed
        hung = self._loop.call_later(self._patience.allowed(owed), self.kill)
        try:
            answers = await answer
            self._patience.learn(owed, self._loop.time() - began)
            return answers
        finally:
            self._owed_bytes -= len(payload)
            hung.cancel()

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()

    async def abandon(self) -> None:
        """End it while it loads, when it owes nobody an answer and would not notice that we hung up."""
        self.kill()
        await self.stop()

    async def stop(self) -> None:
        if self._transport:
            self._transport.close()
        for pause_seconds in _growing(STOP_SECONDS):
            if self._process.poll() is not None:
                return
            await asyncio.sleep(pause_seconds)
        self._process.kill()
        while self._process.poll() is None:  # noqa: ASYNC110 (SIGKILL cannot be refused, and has no event)
            await asyncio.sleep(0.01)

    def _weigh(self, max_bytes: int) -> None:
        """Look at its memory now, and again and again."""
        with contextlib.suppress(OSError):  # it just ended
            held = int(Path(f"/proc/{self.pid}/statm").read_bytes().split()[1]) * PAGE_BYTES
            if held > max_bytes:
                self._had_bytes = held
                logger.error("worker %s holds %.0f MB of memory, and is killed", self.pid, held / 2**20)
                self.kill()
                return
        self._weighing = self._loop.call_later(WEIGH_SECONDS, self._weigh, max_bytes)

    # -- asyncio.Protocol -----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's shares no base class with asyncio's
        if self._max_bytes:
            self._weigh(self._max_bytes)

    def data_received(self, data: bytes) -> None:
        for number, kind, payload in self._reader.feed(data):
            waiting = self._owed.pop(number, None)
            if waiting and not waiting.done():
                _settle(waiting, kind, payload)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 (asyncio's name)
        self.lost.set()
        if self._weighing:
            self._weighing.cancel()
        owed, self._owed = self._owed, {}
        for waiting in owed.values():
            if not waiting.done():
                waiting.set_exception(self._loss())
                waiting.exception()  # a batch nobody waits for any more is no error

    def _loss(self) -> WorkerLost:
        if self._had_bytes:
            return WorkerLost(f"worker {self.pid} was killed: it held {self._had_bytes / 2**20:.0f} MB of memory")
        code = self._process.poll()
        how = f"signal {signal.Signals(-code).name}" if code and code < 0 else "its connection closed"
        return WorkerLost(f"worker {self.pid} ended: {how}")


def _settle(waiting: asyncio.Future[Any], kind: Kind, payload: bytes) -> None:
    try:
        waiting.set_result(as_said(kind, payload))
    except ModelyardError as failure:
        waiting.set_exception(failure)


def as_said(kind: Kind, payload: bytes) -> Any:
    """What a worker said: answers by name, or to requests as they came, or what it loaded as `WorkerInfo`.

    Raises:
        EndpointUnavailable, DataError: it said what went wrong.
    """
    if kind is Kind.ANSWER:
        return unpack_tensors(payload)
    if kind is Kind.TOLD:
        return unpack_answered(payload)
    said = orjson.loads(payload)
    if kind is Kind.READY:
        return worker_info(said)
    raise EndpointUnavailable(said["error"]) if said["transient"] else DataError(said["error"])


def _growing(total: float) -> list[float]:
    """Pauses that start short and add up to ``total`` seconds."""
    pauses, pause = [], 0.005
    while sum(pauses) < total:
        pauses.append(pause)
        pause = min(2 * pause, 0.1)
    return pauses
