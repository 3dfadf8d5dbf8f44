"""Starting versions: fetched, loaded, warmed and probed, before anybody is answered by them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

from modelyard.revisions import ServedVersion
from modelyard.serve.admission import measured_seconds, probe
from modelyard.serve.cache import Cache
from modelyard.serve.limits import Limits
from modelyard.serve.probe import GOLDEN_FILE, read_golden
from modelyard.serve.running import RunningVersion
from modelyard.serve.threads import in_thread
from modelyard.serve.workers import WorkerPool


class Superseded(Exception):
    """A newer revision came while the versions of an older one were being started."""


class Loader:
    """Starts versions from the cache, or from the bucket through it."""

    def __init__(
        self, *, cache: Cache, pool: WorkerPool, limits: Limits, on_restart: Callable[[RunningVersion], None]
    ) -> None:
        self._cache = cache
        self._pool = pool
        self._limits = limits
        self._on_restart = on_restart

    async def start(self, model: str, served: ServedVersion) -> RunningVersion:
        """Fetch, load, warm and probe a version.

        Raises:
            ModelyardError: it must not answer anybody.
        """
        package = await in_thread(self._cache.ensure, served.artifact)
        golden = read_golden(await in_thread(self._cache.ensure, served.verdict, [GOLDEN_FILE]))
        version = RunningVersion(
            model,
            served,
            package,
            keep=partial(self._cache.keep, served.artifact),
            pool=self._pool,
            limits=self._limits,
            on_restart=self._on_restart,
        )
        try:
            await version.start()
            await probe(version, golden)
            version.measured_seconds = measured_seconds(package, served.form)
        except BaseException:
            await version.stop(0)
            raise
        return version

    async def start_all(self, missing: Sequence[tuple[str, ServedVersion]]) -> list[RunningVersion]:
        """Start versions side by side: all of them, or none.

        Raises:
            ModelyardError: the first one's error; the others were ended.
        """
        tasks = [asyncio.create_task(self.start(model, served)) for model, served in missing]
        try:
            return await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.gather(*(one.stop(0) for one in outcomes if isinstance(one, RunningVersion)))
            raise

    async def start_within(
        self, missing: Sequence[tuple[str, ServedVersion]], bound_seconds: float | None, news: asyncio.Task[None] | None
    ) -> list[RunningVersion]:
        """The same within a bound, and only until ``news`` is done.

        Raises:
            TimeoutError: the bound is over.
            Superseded: there is news.
        """
        starting = asyncio.create_task(self.start_all(missing))
        tasks = {starting, news} if news else {starting}
        try:
            done, _ = await asyncio.wait(tasks, timeout=bound_seconds, return_when=asyncio.FIRST_COMPLETED)
            if starting in done:
                return starting.result()
            raise Superseded if done else TimeoutError
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
