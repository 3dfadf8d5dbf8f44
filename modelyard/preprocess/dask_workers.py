"""Partitions prepared by a Dask cluster: one that is there, or one of this machine's own for the run.

Dask knows which workers live: what one of them was at when it died is given to another. Its workers need what flows need:
Modelyard with the same releases, and settings that lead to the store.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from modelyard.errors import MissingExtra, WorkerLost
from modelyard.preprocess.processes import require_done, thread_limits
from modelyard.preprocess.sections import WorkersConfig

if TYPE_CHECKING:
    from distributed import Client

CONNECT_SECONDS = 20
# A worker holds no results that it could put aside: one that was paused for the memory its libraries take would never go on.
NO_PAUSE = {f"distributed.worker.memory.{step}": False for step in ("target", "spill", "pause")}


def by_dask(orders: Iterable[Mapping[str, Any]], config: WorkersConfig, count: int, threads: int) -> None:
    """Have every order carried out.

    Args:
        count, threads: of a cluster on this machine; another one has its own.

    Raises:
        MissingExtra: Dask is not installed.
        WorkerLost: the cluster does not answer, workers kept dying over one partition, or none was done in time.
        ModelyardError: what an order met.
    """
    require_dask()
    from distributed import wait
    from distributed.scheduler import KilledWorker

    from modelyard.preprocess.worker import outcome_of

    with _client(config, count, threads) as client:
        waiting = {client.submit(outcome_of, dict(order), pure=False) for order in orders}
        try:
            while waiting:
                done, waiting = wait(waiting, timeout=config.partition_seconds, return_when="FIRST_COMPLETED")
                for future in done:
                    require_done(future.result())
        except TimeoutError:
            raise WorkerLost(f"no partition was prepared within {config.partition_seconds:g} s") from None
        except KilledWorker as failure:
            raise WorkerLost(f"the workers that prepared one partition died, one after the other: {failure}") from None
        finally:
            client.cancel(list(waiting))


def require_dask() -> None:
    """Say what is missing before anything is read.

    Raises:
        MissingExtra: Dask is not installed.
    """
    try:
        import distributed  # noqa: F401
    except ImportError:
        raise MissingExtra("distributed", "dask", "preprocess.workers.kind dask") from None


@contextmanager
def _client(config: WorkersConfig, count: int, threads: int) -> Generator[Client]:
    import dask
    from distributed import Client, LocalCluster

    with ExitStack() as stack:
        address: Any = config.address
        if not address:
            stack.enter_context(dask.config.set(NO_PAUSE))
            cluster = LocalCluster(
                n_workers=count,
                threads_per_worker=1,  # a worker prepares one partition at a time; its libraries have threads of their own
                processes=True,
                memory_limit=config.memory_bytes,
                dashboard_address=":0",
                env=thread_limits(threads),
            )
            address = stack.enter_context(cluster)
        try:
            yield stack.enter_context(Client(address, timeout=CONNECT_SECONDS))
        except OSError as failure:
            raise WorkerLost(f"no Dask scheduler answers at {config.address}: {failure}") from failure
