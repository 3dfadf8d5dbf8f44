"""Partitions prepared by a Dask cluster: one that is there, or one of this machine's own for the run.

Dask knows which workers live: what one of them was at when it died is given to another. Its workers need what flows need:
Modelyard with the same releases, and settings that lead to the store.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from modelyard.catalog import Origin
from modelyard.errors import MissingExtra, WorkerLost
from modelyard.preprocess.crews import MOST_SHARES, Patience, described, order_of, require_done
from modelyard.preprocess.prepare import Preparation
from modelyard.preprocess.processes import thread_limits
from modelyard.preprocess.sections import WorkersConfig

if TYPE_CHECKING:
    from distributed import Future

CONNECT_SECONDS = 20
# A worker holds no results that it could put aside: one that was paused for the memory its libraries take would never go on.
NO_PAUSE = {f"distributed.worker.memory.{step}": False for step in ("target", "spill", "pause")}


class DaskCrew:
    """Workers of a Dask cluster, which gets all partitions at once.

    Args:
        count, threads: of a cluster on this machine; another one has its own.

    Raises:
        WorkerLost: as it is entered: no cluster answers.
    """

    at_once = MOST_SHARES

    def __init__(self, config: WorkersConfig, origin: Origin, count: int, threads: int) -> None:
        self._config, self._origin, self._count, self._threads = config, origin, count, threads
        self._stack = ExitStack()
        self._patience = Patience(config.partition_seconds)
        self._under_way: set[Future] = set()
        self._is_cancelled = False

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._client = self._connected(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()
        self._stack.close()

    def carry_out(self, preparations: Sequence[Preparation]) -> None:
        from distributed import wait
        from distributed.scheduler import KilledWorker

        from modelyard.preprocess.worker import outcome_of

        if self._is_cancelled:
            raise CancelledError
        orders = [order_of(one, self._origin) for one in preparations]
        waiting = {self._client.submit(outcome_of, order, pure=False) for order in orders}
        self._under_way |= waiting
        while waiting:
            try:
                done, waiting = wait(waiting, timeout=self._patience.left, return_when="FIRST_COMPLETED")
            except TimeoutError:
                self._patience.check()
                continue
            if self._is_cancelled:
                raise CancelledError
            self._under_way -= done
            self._patience.heard()
            try:
                for future in done:
                    require_done(future.result())
            except KilledWorker as failure:
                raise WorkerLost(
                    f"{described(preparations)}: the workers that prepared one partition died, one after the other: {failure}"
                ) from None

    def cancel(self) -> None:
        self._is_cancelled = True
        self._client.cancel(list(self._under_way))

    def _connected(self, stack: ExitStack) -> Any:
        import dask
        from distributed import Client, LocalCluster

        address: Any = self._config.address
        if not address:
            stack.enter_context(dask.config.set(NO_PAUSE))
            cluster = LocalCluster(
                n_workers=self._count,
                threads_per_worker=1,  # a worker prepares one partition at a time; its libraries have threads of their own
                processes=True,
                memory_limit=self._config.memory_bytes,
                dashboard_address=":0",
                env=thread_limits(self._threads),
            )
            address = stack.enter_context(cluster)
        try:
            return stack.enter_context(Client(address, timeout=CONNECT_SECONDS))
        except OSError as failure:
            raise WorkerLost(f"no Dask scheduler answers at {address}: {failure}") from failure


def require_dask() -> None:
    """Say what is missing before anything is read.

    Raises:
        MissingExtra: Dask is not installed.
    """
    try:
        import distributed  # noqa: F401
    except ImportError:
        raise MissingExtra("distributed", "dask", "preprocess.workers.kind dask") from None
