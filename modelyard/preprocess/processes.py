"""Partitions prepared by several processes of this machine. One that dies costs the partition it was at, no other.

Processes of our own rather than a pool of the standard library: there, one that is killed takes all others with it.
"""

from __future__ import annotations

import json
import logging
import os
import select
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self

import psutil

from modelyard.catalog import Origin
from modelyard.errors import WorkerLost
from modelyard.preprocess.crews import TRIES, described, order_of, require_done
from modelyard.preprocess.prepare import Preparation
from modelyard.preprocess.sections import WorkersConfig

GRACE_SECONDS = 5.0
WORKER = "modelyard.preprocess.worker"

logger = logging.getLogger(__name__)


def division(config: WorkersConfig, num_partitions: int) -> tuple[int, int]:
    """How many work at a time on this machine, and with how many threads each."""
    fitting = psutil.virtual_memory().available // config.memory_bytes
    count = max(1, min(config.count, num_partitions, fitting))
    return count, max(1, len(os.sched_getaffinity(0)) // count)


def thread_limits(threads: int) -> dict[str, str]:
    """Environment of a process that is to use so many threads; its libraries read it as they are imported."""
    names = ("POLARS_MAX_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ARROW_IO_THREADS")
    return dict.fromkeys(names, str(threads))


class WorkerProcess:
    """One process that is told things as lines of JSON, as its parent sees it; a context manager that leaves nothing behind."""

    def __init__(self, limits: Mapping[str, str], module: str = WORKER) -> None:
        self._limits, self._module = limits, module
        self._process = self._started()

    def _started(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", self._module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=0,  # a Ctrl-C in the terminal reaches us first, and we end it in order
            env={**os.environ, **self._limits},
        )

    def restart(self) -> None:
        """Another process in its place."""
        self.stop()
        self._process = self._started()

    @property
    def pid(self) -> int:
        return self._process.pid

    def carry_out(self, order: Mapping[str, Any], seconds: float) -> dict[str, str]:
        """What `modelyard.preprocess.worker.outcome_of` says of an order.

        Raises:
            WorkerLost: the process died, or took longer.
        """
        self.tell(order)
        return self.hear(seconds)

    def tell(self, value: Mapping[str, Any]) -> None:
        """Send it something.

        Raises:
            WorkerLost: the process is gone.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(value).encode() + b"\n")
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):  # closed there, or here
            raise WorkerLost(f"process {self.pid} is gone") from None

    def hear(self, seconds: float | None = None) -> Any:
        """What it says next.

        Args:
            seconds: not longer than that, where nothing that it said before may be unread; None: until it ends.

        Raises:
            WorkerLost: the process died, or took longer.
        """
        assert self._process.stdout is not None
        if seconds is not None and not select.select([self._process.stdout], [], [], seconds)[0]:
            raise WorkerLost(f"process {self.pid} took longer than {seconds:g} s for a partition")
        answer = self._process.stdout.readline()
        if not answer.endswith(b"\n"):
            raise WorkerLost(f"process {self.pid} died, with status {self._process.wait(GRACE_SECONDS)}")
        return json.loads(answer)

    def end(self) -> None:
        """End the process, whatever it is doing; who listens to it hears that. Returns within a few seconds."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(GRACE_SECONDS)

    def stop(self) -> None:
        """End it where nobody listens to it any more; may be called again."""
        self.end()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class ProcessCrew:
    """Processes that take partitions one by one, in the order in which they were handed in.

    Args:
        count, threads: how many processes, and how many threads each uses.
    """

    def __init__(self, config: WorkersConfig, origin: Origin, count: int, threads: int) -> None:
        self._config, self._origin, self._limits = config, origin, thread_limits(threads)
        self._count, self._pool = count, ThreadPoolExecutor(count)
        self._workers: list[WorkerProcess] = []
        self._idle: SimpleQueue[WorkerProcess] = SimpleQueue()
        self._is_cancelled = threading.Event()

    @property
    def at_once(self) -> int:
        return self._count + 1  # so that none is idle while the last partition of a share is at work

    def __enter__(self) -> Self:
        for _ in range(self._count):
            self._workers.append(WorkerProcess(self._limits))
            self._idle.put(self._workers[-1])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()
        for worker in self._workers:
            worker.end()
        self._pool.shutdown(cancel_futures=True)
        for worker in self._workers:
            worker.stop()

    def carry_out(self, preparations: Sequence[Preparation]) -> None:
        begun = [self._pool.submit(copy_context().run, self._prepare, one) for one in preparations]
        try:
            for one in begun:
                one.result()
        except BaseException:
            for one in begun:
                one.cancel()
            raise

    def cancel(self) -> None:
        self._is_cancelled.set()

    def _prepare(self, preparation: Preparation) -> None:
        worker = self._idle.get()
        try:
            self._try(preparation, worker)
        finally:
            self._idle.put(worker)

    def _try(self, preparation: Preparation, worker: WorkerProcess) -> None:
        lost: list[str] = []
        order = order_of(preparation, self._origin)
        while len(lost) < TRIES:
            if self._is_cancelled.is_set():
                raise CancelledError
            try:
                require_done(worker.carry_out(order, self._config.partition_seconds))
            except WorkerLost as failure:
                if self._is_cancelled.is_set():
                    raise CancelledError from None
                lost.append(str(failure))
                logger.warning("%s: %s; another one tries", described([preparation]), failure)
                worker.restart()
            else:
                return
        raise WorkerLost(f"{described([preparation])} could not be prepared: {'; '.join(lost)}")
