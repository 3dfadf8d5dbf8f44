"""Partitions prepared by several processes of this machine. One that dies costs the partition it was at, no other.

Processes of our own rather than a pool of the standard library: there, one that is killed takes all others with it.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import psutil

from modelyard.errors import PermanentError, WorkerLost, as_told
from modelyard.preprocess.sections import WorkersConfig

GRACE_SECONDS = 5.0
TRIES = 3  # of one partition, by as many processes

Order = Mapping[str, Any]


def division(config: WorkersConfig, num_partitions: int) -> tuple[int, int]:
    """How many work at a time on this machine, and with how many threads each."""
    fitting = psutil.virtual_memory().available // config.memory_bytes
    count = max(1, min(config.count, num_partitions, fitting))
    return count, max(1, len(os.sched_getaffinity(0)) // count)


def thread_limits(threads: int) -> dict[str, str]:
    """Environment of a process that is to use so many threads; its libraries read it as they are imported."""
    names = ("POLARS_MAX_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ARROW_IO_THREADS")
    return dict.fromkeys(names, str(threads))


def by_processes(orders: Iterable[Order], config: WorkersConfig, count: int, threads: int) -> None:
    """Have every order carried out.

    Raises:
        WorkerLost: the processes that tried one of them died or took too long, each of them.
        ModelyardError: what an order met; those that were under way are still carried out, and kept.
    """
    crew = _Crew(orders, config, thread_limits(threads))
    with ThreadPoolExecutor(count) as pool:
        for ended in [pool.submit(crew.work) for _ in range(count)]:
            ended.result()


class WorkerProcess:
    """One process, as its parent sees it; a context manager that leaves nothing behind."""

    def __init__(self, limits: Mapping[str, str]) -> None:
        self._limits = limits
        self._process = self._started()

    def _started(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "modelyard.preprocess.worker"],
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

    def carry_out(self, order: Order, seconds: float) -> dict[str, str]:
        """What `modelyard.preprocess.worker.outcome_of` says of an order.

        Raises:
            WorkerLost: the process died, or took longer.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise WorkerLost(f"process {self.pid} is gone") from None
        if not select.select([self._process.stdout], [], [], seconds)[0]:
            raise WorkerLost(f"process {self.pid} took longer than {seconds:g} s for a partition")
        answer = self._process.stdout.readline()
        if not answer.endswith(b"\n"):
            raise WorkerLost(f"process {self.pid} died, with status {self._process.wait(GRACE_SECONDS)}")
        return json.loads(answer)

    def stop(self) -> None:
        """End it, whatever it is doing; returns within a few seconds, and may be called again."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()
        try:
            self._process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(GRACE_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class _Crew:
    """Orders that threads take one by one, each with a process of its own."""

    def __init__(self, orders: Iterable[Order], config: WorkersConfig, limits: Mapping[str, str]) -> None:
        self._orders, self._config, self._limits = deque(orders), config, limits
        self._failed = threading.Event()

    def work(self) -> None:
        with WorkerProcess(self._limits) as worker:
            try:
                while (order := self._next()) and not self._failed.is_set():
                    self._carry_out(order, worker)
            except BaseException:
                self._failed.set()
                raise

    def _next(self) -> Order | None:
        try:
            return self._orders.popleft()
        except IndexError:
            return None

    def _carry_out(self, order: Order, worker: WorkerProcess) -> None:
        lost: list[str] = []
        while len(lost) < TRIES:
            try:
                require_done(worker.carry_out(order, self._config.partition_seconds))
            except WorkerLost as failure:
                lost.append(str(failure))
                worker.restart()
            else:
                return
        raise WorkerLost(f"{described(order)} could not be prepared: {'; '.join(lost)}")


def require_done(outcome: Mapping[str, str]) -> None:
    """Raise what a worker told of.

    Raises:
        ModelyardError: of the same class and with the same sentence, or `PermanentError` for what is not ours.
    """
    if outcome:
        raise as_told(outcome["error"], outcome["message"]) or PermanentError(outcome["message"])


def described(order: Order) -> str:
    """The files of an order, for sentences."""
    names = [source["name"] for source in order["preparation"]["partition"]["sources"]]
    return _some(names)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more files" if len(names) > 3 else "")
