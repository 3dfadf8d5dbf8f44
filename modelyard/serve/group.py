"""Several workers of one version behind one handle: calls go to the idlest, and another one answers for a dead one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from modelyard.errors import ModelyardError
from modelyard.revisions import ServedVersion
from modelyard.serve.limits import Limits
from modelyard.serve.threads import in_thread
from modelyard.serve.unread import Answered, Call
from modelyard.serve.wire import Tensor
from modelyard.serve.workers import END_SECONDS, Keep, WorkerHandle, WorkerLost, WorkerPool

logger = logging.getLogger(__name__)

Said = TypeVar("Said")


class GroupPool:
    """Makes each handle a group of ``size`` workers of another pool."""

    def __init__(self, pool: WorkerPool, size: int, limits: Limits) -> None:
        self._pool = pool
        self._size = size
        self._limits = limits

    async def spawn(self, version: ServedVersion, folder: Path, keep: Keep | None = None) -> WorkerGroup:
        """Start all of them side by side: the whole group, or none.

        Raises:
            DataError, WorkerLost: the first one's error; the others were ended.
        """
        tasks = [asyncio.create_task(self._pool.spawn(version, folder)) for _ in range(self._size)]
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        members = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
        failures = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        if failures:
            await asyncio.gather(*(member.stop() for member in members))
            raise failures[0]

        async def spawn_one() -> WorkerHandle:
            return await self._pool.spawn(version, await in_thread(keep) if keep else folder)

        return WorkerGroup(members, spawn_one, self._limits)


class WorkerGroup:
    """A handle (`workers.WorkerHandle`) that is lost when all of its workers are; single ones it starts again itself."""

    def __init__(
        self, members: Sequence[WorkerHandle], spawn: Callable[[], Awaitable[WorkerHandle]], limits: Limits
    ) -> None:
        self.lost = asyncio.Event()
        self.info = members[0].info
        self.on_respawn: Callable[[], None] | None = None
        self._members = list(members)
        self._owed = dict.fromkeys(map(id, members), 0)
        self._spawn = spawn
        self._limits = limits
        self._watchers = [asyncio.create_task(self._watch(member)) for member in members]

    @property
    def pid(self) -> int | None:
        """The first living worker's."""
        return next((member.pid for member in self._members if not member.lost.is_set()), None)

    async def infer(self, rows: np.ndarray) -> dict[str, Tensor]:
        """Ask the idlest worker; when it dies over it, another.

        Raises:
            WorkerLost: all of them died over it.
        """
        return await self._ask(lambda member: member.infer(rows))

    async def read(self, call: Call) -> Answered:
        """The same for requests as they came."""
        return await self._ask(lambda member: member.read(call))

    async def _ask(self, ask: Callable[[WorkerHandle], Awaitable[Said]]) -> Said:
        tried: set[int] = set()
        while True:
            living = [member for member in self._members if not member.lost.is_set() and id(member) not in tried]
            if not living:
                raise WorkerLost("no worker of the group is alive")
            member = min(living, key=lambda each: self._owed[id(each)])
            tried.add(id(member))
            self._owed[id(member)] += 1
            try:
                return await ask(member)
            except WorkerLost as failure:
                logger.info("%s; another one of its group is asked", failure)
            finally:
                if id(member) in self._owed:
                    self._owed[id(member)] -= 1

    def kill(self) -> None:
        for member in self._members:
            member.kill()

    async def stop(self) -> None:
        for watcher in self._watchers:
            watcher.cancel()
        self.lost.set()
        await asyncio.wait(self._watchers, timeout=END_SECONDS)  # one may be ending a worker that it was starting
        await asyncio.gather(*(member.stop() for member in self._members))

    async def _watch(self, member: WorkerHandle) -> None:
        """Replace a worker whenever it dies, unless it was the last: then whoever holds the group decides."""
        deaths = 0
        loop = asyncio.get_running_loop()
        while True:
            born = loop.time()
            await member.lost.wait()
            self._members.remove(member)
            del self._owed[id(member)]
            if not self._members:
                self.lost.set()
                return
            deaths = 0 if loop.time() - born > self._limits.steady_seconds else deaths + 1
            await member.stop()
            member = await self._replacement(deaths)

    async def _replacement(self, deaths: int) -> WorkerHandle:
        """Try until a worker lives, with growing pauses."""
        first, longest = self._limits.respawn_seconds
        while True:
            if self.on_respawn:
                self.on_respawn()
            await asyncio.sleep(min(longest, first * 2 ** min(deaths, 16)))
            deaths += 1
            try:
                member = await self._spawn()
            except (ModelyardError, OSError) as failure:
                logger.warning("a worker of the group cannot be started: %s", failure)
                continue
            self._owed[id(member)] = 0
            self._members.append(member)
            return member
