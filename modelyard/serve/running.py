"""One model version kept alive: a worker that is started again when it dies, and the queue in front of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np

from modelyard.errors import ModelyardError
from modelyard.revisions import ServedVersion
from modelyard.serve.batching import Batcher
from modelyard.serve.limits import Limits
from modelyard.serve.pieces import Waiting
from modelyard.serve.threads import in_thread
from modelyard.serve.unread import Answered, Call, Unread
from modelyard.serve.wire import Tensor
from modelyard.serve.worker_info import WorkerInfo
from modelyard.serve.workers import END_SECONDS, WorkerHandle, WorkerLost, WorkerPool

logger = logging.getLogger(__name__)


class RunningVersion:
    """A version that was loaded once; `start` must have returned before it is asked.

    Args:
        folder: the package's files, just verified.
        keep: verifies them again, fetches what is damaged or gone, and gives their folder: before a worker is started
            in the place of one that died, perhaps weeks later.
    """

    def __init__(
        self,
        model: str,
        served: ServedVersion,
        folder: Path,
        *,
        keep: Callable[[], Path],
        pool: WorkerPool,
        limits: Limits,
        on_restart: Callable[[RunningVersion], None],
    ) -> None:
        self.model = model
        self.served = served
        self.num_requests = 0
        self.num_restarts = 0
        self.golden_rows = np.zeros((1, 0))  # raw rows that its verdict was computed on
        self.measured_seconds: float | None = None  # for one row, when it was compressed
        self._folder = folder
        self._keep = keep
        self._pool = pool
        self._limits = limits
        self._on_restart = on_restart
        self._handle: WorkerHandle | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._batcher = Batcher(self._infer_batch, limits, self._read_batch)
        self._available = asyncio.Event()
        self._stopped = False
        self._deaths = 0
        self._born = 0.0
        self._info = WorkerInfo(columns=[], outputs=[])

    @property
    def key(self) -> tuple[str, str, str, str]:
        return version_key(self.model, self.served)

    @property
    def info(self) -> WorkerInfo:
        return self._info

    @property
    def is_available(self) -> bool:
        alive = self._handle is not None and not self._handle.lost.is_set()
        return alive and self._available.is_set() and not self._stopped

    @property
    def keeps_dying(self) -> bool:
        """Whether its worker died so often, each time soon after its start, that others should have its requests.

        A worker that then lives for `Limits.steady_seconds` is trusted again.
        """
        if self._deaths < self._limits.max_deaths:
            return False
        return asyncio.get_running_loop().time() - self._born < self._limits.steady_seconds

    @property
    def num_in_flight(self) -> int:
        return self._batcher.num_unanswered

    @property
    def worker_pid(self) -> int | None:
        return self._handle.pid if self._handle and self.is_available else None

    @property
    def state(self) -> str:
        if self._stopped:
            return "stopped"
        return "ready" if self.is_available else "restarting"

    async def start(self) -> None:
        """Load the version.

        Raises:
            DataError, WorkerLost: it could not be loaded.
        """
        self._adopt(await self._pool.spawn(self.served, self._folder, self._keep))
        self._supervisor = asyncio.create_task(self._supervise())

    def submit(self, waiting: Waiting, rows: np.ndarray | Unread) -> None:
        """Have ``waiting`` called with the answers for raw rows (n, width) or a request as it came, or with what went wrong.

        Raises:
            WorkerLost: the worker is dead; another version may be asked.
            Overloaded: too much is waiting.
        """
        if not self.is_available:
            raise WorkerLost(f"{self.model} version {self.served.version} has no living worker")
        self._batcher.submit(waiting, rows)
        self.num_requests += 1

    async def infer(self, rows: np.ndarray) -> dict[str, Tensor]:
        """The same for who can wait.

        Raises:
            WorkerLost: the worker is dead or died over it.
            Overloaded, DataError: as `submit`; the model refuses these rows.
        """
        awaited = _Awaited()
        self.submit(awaited, rows)
        return await awaited.answer

    async def wait_available(self) -> None:
        """Until it can be asked again.

        Raises:
            WorkerLost: it was stopped for good.
        """
        if not self.is_available and not self._stopped:
            self._available.clear()  # requests may learn of a death before the supervisor does
        await self._available.wait()
        if self._stopped:
            raise WorkerLost(f"{self.model} version {self.served.version} was stopped")

    async def stop(self, drain_seconds: float) -> None:
        """Finish what is in flight, up to a bound, and end the worker."""
        try:
            async with asyncio.timeout(drain_seconds):
                await self._batcher.idle.wait()
        except TimeoutError:
            logger.warning("%s version %s: %d requests cut off", self.model, self.served.version, self.num_in_flight)
        self._stopped = True
        self._available.set()  # whoever waits for it shall learn that it is gone
        if self._supervisor:
            self._supervisor.cancel()
            await asyncio.wait(
                [self._supervisor], timeout=END_SECONDS
            )  # it may be ending a worker that it was starting
        if self._handle:
            await self._handle.stop()

    async def _infer_batch(self, rows: np.ndarray) -> dict[str, Tensor]:
        return await self._living.infer(rows)

    async def _read_batch(self, requests: list[Unread]) -> Answered:
        return await self._living.read(Call(self.model, self.served.version, requests))

    @property
    def _living(self) -> WorkerHandle:
        if self._handle is None:
            raise WorkerLost(f"{self.model} version {self.served.version} has no worker")
        return self._handle

    def _adopt(self, handle: WorkerHandle) -> None:
        self._handle, self._info = handle, handle.info
        handle.on_respawn = self._count_restart
        self._born = asyncio.get_running_loop().time()
        self._available.set()

    def _count_restart(self) -> None:
        self.num_restarts += 1
        self._on_restart(self)

    async def _supervise(self) -> None:
        """Start the worker again whenever it dies, with growing pauses while it keeps dying."""
        while self._handle:
            await self._handle.lost.wait()
            self._available.clear()
            if asyncio.get_running_loop().time() - self._born > self._limits.steady_seconds:
                self._deaths = 0
            await self._handle.stop()
            await self._respawn()

    async def _respawn(self) -> None:
        """Try until a worker lives."""
        first, longest = self._limits.respawn_seconds
        while True:
            self._count_restart()
            logger.warning("%s version %s: worker died, starting another", self.model, self.served.version)
            pause_seconds = min(longest, first * 2 ** min(self._deaths, 16))
            self._deaths += 1
            if self._deaths == self._limits.max_deaths:
                logger.error("%s version %s keeps dying; others take its requests", self.model, self.served.version)
            await asyncio.sleep(pause_seconds)
            try:
                self._folder = await in_thread(self._keep)
                self._adopt(await self._pool.spawn(self.served, self._folder, self._keep))
            except (ModelyardError, OSError) as failure:
                logger.warning("%s version %s: %s", self.model, self.served.version, failure)
            else:
                return


class _Awaited:
    """Somebody who waits for one answer in a coroutine."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[dict[str, Tensor]] = asyncio.get_running_loop().create_future()

    @property
    def is_over(self) -> bool:
        return self.answer.done()

    def answered(self, answers: dict[str, Tensor], begin: int, end: int) -> None:
        if not self.is_over:
            self.answer.set_result({name: tensor[begin:end] for name, tensor in answers.items()})

    def failed(self, failure: Exception) -> None:
        if not self.is_over:
            self.answer.set_exception(failure)


def version_key(model: str, served: ServedVersion) -> tuple[str, str, str, str]:
    """What makes two served versions the same process: not their weight, nor who rolled them out."""
    return model, served.version, served.artifact.digest, served.form
