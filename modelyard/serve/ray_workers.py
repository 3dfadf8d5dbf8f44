"""A pool whose workers are actors on the nodes of a Ray cluster. What the router does with them it does with any."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from modelyard.errors import ClusterUnavailable
from modelyard.ray_cluster import connect, require_ray
from modelyard.revisions import ServedVersion
from modelyard.serve.limits import Limits
from modelyard.serve.ray_replica import Replica, replica_code
from modelyard.serve.threads import in_thread
from modelyard.serve.unread import Answered, Call, pack_call
from modelyard.serve.wire import Kind, Tensor, pack_tensors
from modelyard.serve.worker_info import WorkerInfo
from modelyard.serve.workers import Keep, WorkerLost, as_said

logger = logging.getLogger(__name__)

SETTING = "MODELYARD_ENDPOINT_RAY"
CONNECT_SECONDS = 20.0
STOP_SECONDS = 2.0  # Ray kills at once; where it cannot, the node is gone
# No restarts by Ray: a successor is asked for, warmed and counted by who holds the handle.
OPTIONS: dict[str, Any] = {
    "num_cpus": 1,
    "max_restarts": 0,
    "scheduling_strategy": "SPREAD",
    "concurrency_groups": {"watch": 1},
}


class RayPool:
    """Workers as actors, a CPU each, spread over nodes.

    Args:
        address: of the cluster, as `modelyard.ray_cluster` takes it.

    Raises:
        MissingExtra: Ray is not installed.
    """

    def __init__(self, address: str, limits: Limits) -> None:
        require_ray(SETTING)
        self._address = address
        self._limits = limits
        self._connecting: asyncio.Task[None] | None = None
        self._code = ""

    async def spawn(self, version: ServedVersion, folder: Path, keep: Keep | None = None) -> RayWorker:  # noqa: ARG002 (nodes have their own)
        """A worker somewhere in the cluster.

        Raises:
            ClusterUnavailable: the cluster does not answer, or had no room in time.
            DataError, WorkerLost: as any pool.
        """
        await self._connect()
        import ray

        as_actor: Any = ray.remote(**OPTIONS)
        worker = RayWorker(as_actor(Replica).remote(), self._limits.hang_seconds)
        try:
            async with asyncio.timeout(self._limits.load_seconds):
                await worker.load(version, self._code)
        except TimeoutError:
            await worker.stop()
            raise ClusterUnavailable(
                f"version {version.version} did not load in {self._limits.load_seconds:g} s: a replica takes a CPU of the Ray"
                " cluster, and perhaps none is free"
            ) from None
        except BaseException:
            await worker.stop()
            raise
        return worker

    async def _connect(self) -> None:
        """Once for all versions; what failed is tried anew."""
        if self._connecting is None or (self._connecting.done() and self._failed(self._connecting)):
            self._connecting = asyncio.create_task(in_thread(self._begin))
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await asyncio.shield(self._connecting)
        except TimeoutError:
            raise ClusterUnavailable(
                f"{self._address} has not taken this process in within {CONNECT_SECONDS:g} s: is this machine a node?"
            ) from None

    def _begin(self) -> None:
        self._code = replica_code()
        connect(self._address, SETTING)

    @staticmethod
    def _failed(task: asyncio.Task[None]) -> bool:
        return task.cancelled() or task.exception() is not None


class RayWorker:
    """The router's end of one actor."""

    def __init__(self, actor: Any, hang_seconds: float) -> None:
        self.lost = asyncio.Event()
        self.on_respawn: Callable[[], None] | None = None
        self.info = WorkerInfo(columns=[], outputs=[])
        self._actor = actor
        self._hang_seconds = hang_seconds
        self._watching = asyncio.create_task(self._watch())

    @property
    def pid(self) -> int | None:
        """None: a number of another machine's process would mislead."""
        return None

    async def load(self, version: ServedVersion, code: str) -> None:
        """Have it load a version, and wait until it can answer.

        Raises:
            ModelyardError: it cannot.
        """
        self.info = await self._call(self._actor.load, version.artifact.model_dump_json(), version.form, code)

    async def infer(self, rows: np.ndarray) -> dict[str, Tensor]:
        return await self._ask(Kind.INFER, pack_tensors({"features": rows}))

    async def read(self, call: Call) -> Answered:
        return await self._ask(Kind.READ, pack_call(call))

    async def _ask(self, kind: Kind, payload: bytes) -> Any:
        if self.lost.is_set():
            raise WorkerLost("the replica is gone")
        try:
            async with asyncio.timeout(self._hang_seconds):
                return await self._call(self._actor.answer, int(kind), payload)
        except TimeoutError:
            self.kill()
            raise WorkerLost(f"the replica owed an answer for {self._hang_seconds:g} s, and was killed") from None

    def kill(self) -> None:
        import ray
        from ray.exceptions import RayError

        with contextlib.suppress(RayError):
            ray.kill(self._actor)

    async def stop(self) -> None:
        self.kill()
        await asyncio.wait([self._watching], timeout=STOP_SECONDS)
        self._watching.cancel()
        self.lost.set()

    async def _call(self, method: Any, *arguments: Any) -> Any:
        from ray.exceptions import RayError

        try:
            kind, payload = await method.remote(*arguments)
        except RayError as failure:
            self.lost.set()
            raise WorkerLost(f"the replica is gone: {str(failure).splitlines()[0]}") from None
        return as_said(Kind(kind), payload)

    async def _watch(self) -> None:
        from ray.exceptions import RayError

        with contextlib.suppress(RayError):
            await self._actor.watch.options(concurrency_group="watch").remote()
        self.lost.set()
