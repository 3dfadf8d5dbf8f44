"""Makes the endpoint serve what the newest revision says, without ever serving less than it did.

A revision is taken over whole: every version it names is fetched, started, warmed and probed beside those that
answer now, and only then the routing table is replaced. What goes wrong before that leaves the table as it was,
and is said in the status.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any

from modelyard import transitions
from modelyard.errors import EndpointUnavailable, ModelyardError, NotFound, PermanentError
from modelyard.revisions import ReplicaStatus, Revision, ServedVersion, latest_revision, publish_status, read_revision
from modelyard.serve.admission import refuse_other_schemas
from modelyard.serve.attempts import Attempts, Progress, reached
from modelyard.serve.cache import Cache
from modelyard.serve.judging import Judge
from modelyard.serve.limits import Limits
from modelyard.serve.loading import Loader, Superseded
from modelyard.serve.router import Route, Router, Table
from modelyard.serve.running import RunningVersion, version_key
from modelyard.serve.state import LocalState
from modelyard.serve.threads import in_thread
from modelyard.serve.workers import WorkerPool
from modelyard.storage import Store

logger = logging.getLogger(__name__)

# How many earlier revisions a start tries when the newest cannot be served and nothing is cached.
FALLBACK_REVISIONS = 10


class Reconciler:
    """Follows the revisions of one endpoint; the only writer of the router's table."""

    def __init__(
        self,
        endpoint: str,
        replica: str,
        *,
        store: Store,
        cache: Cache,
        state: LocalState,
        pool: WorkerPool,
        router: Router,
        limits: Limits,
        on_restart: Callable[[RunningVersion], None],
    ) -> None:
        self.endpoint = endpoint
        self.replica = replica
        self.progress = Progress()
        self._store = store
        self._cache = cache
        self._state = state
        self._loader = Loader(cache=cache, pool=pool, limits=limits, on_restart=on_restart)
        self._router = router
        self._limits = limits
        self._judge = Judge(endpoint, replica, store=store, router=router, on_written=self.notify)
        self._running: dict[tuple[str, str, str, str], RunningVersion] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._remembering = asyncio.Lock()
        self._followed = asyncio.Event()
        self._notified = asyncio.Event()
        self._named = 0  # the newest revision that a notice named
        self._met_bucket = False
        self._attempts = Attempts(*limits.retry_seconds)
        self._loading: list[str] = []
        self._published: ReplicaStatus | None = None
        self._complaints: set[str] = set()

    # -- what others ask ------------------------------------------------------------------------------

    def notify(self, revision: int = 0) -> None:
        """Look at the bucket now, and try a refused revision once more.

        Args:
            revision: one that is there, if known. It is read at once, and who lists the newest comes after it.
        """
        self._attempts.forgive()
        self._named = max(self._named, revision)
        self._notified.set()

    @property
    def not_ready_because(self) -> str | None:
        """Why this replica should get no requests, or None."""
        table = self._router.table
        if not self.progress.is_known:
            return self.progress.error or "the object store has not said yet what to serve"
        if not table.routes and self.progress.error:
            return self.progress.error
        dead = [name for name, route in table.routes.items() if not any(v.is_available for v in route.in_order())]
        return f"no living worker of {', '.join(dead)}" if dead else None

    def status(self) -> ReplicaStatus:
        table = self._router.table
        return ReplicaStatus(
            replica=self.replica,
            revision=table.revision.number,
            attempted=self.progress.attempted,
            error=self.progress.error or self._judge.owed,
            serving={name: [v.served.version for v, _ in route.named()] for name, route in table.routes.items()},
            counts=self._judge.counts(),
            loading=list(self._loading),
        )

    # -- the loop -------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve the local state at once, then follow the bucket and judge its rollouts until cancelled."""
        await self._resume()
        # A notice must not wait for the bucket to take a status, so that is written beside the loop.
        beside = [asyncio.create_task(self._judge.run()), asyncio.create_task(self._keep_published())]
        try:
            while True:
                self._notified.clear()
                await self._follow()
                self._followed.set()
                try:
                    async with asyncio.timeout(self._limits.poll_seconds):
                        await self._notified.wait()
                except TimeoutError:
                    pass
                for task in beside:
                    if task.done():
                        task.result()  # it never returns: an error in it is a defect, and must not go unseen
        finally:
            for task in beside:
                task.cancel()

    async def close(self) -> None:
        """End every worker; the endpoint has answered its last request."""
        await asyncio.gather(*(version.stop(0) for version in self._running.values()))
        await in_thread(self._cache.close)

    async def _resume(self) -> None:
        revision = await in_thread(self._state.read)
        if revision is None:
            return
        stable_alone = transitions.without_canaries(revision)
        for wanted in [revision] if stable_alone == revision else [revision, stable_alone]:
            try:
                await self._take_over(wanted, reached(revision.number))
            except Exception as failure:  # noqa: BLE001 (the stable version alone may work, or what the bucket has)
                logger.warning("revision %d of the local state cannot be served: %s", revision.number, failure)
                self.progress.error = _sentence(failure)
            else:
                return

    async def _follow(self) -> None:
        """One look at the bucket, and what follows from it. Never raises."""
        current = self._router.table.revision
        try:
            # The first time from the beginning: the local state may stem from another bucket.
            after = current.number if self._met_bucket else 0
            newest = await self._named_after(after) or await in_thread(
                latest_revision, self._store, self.endpoint, after
            )
        except (ModelyardError, ValueError) as failure:  # ValueError: a document that is not a revision
            if not self.progress.is_known or not isinstance(failure, ModelyardError):
                self.progress.error = _sentence(failure)
            self._complain(f"the revisions cannot be read: {failure}")
            return
        self._complaints.clear()
        self._met_bucket = True
        if newest is None or newest == current:
            self.progress = reached(current.number)
        elif self._attempts.may_try(newest):
            await self._attempt(newest)

    async def _named_after(self, number: int) -> Revision | None:
        """The revision that a notice named, if it is newer than ``number`` and there: one answer of the bucket, not two."""
        named, self._named = self._named, 0
        if not 0 < number < named:
            return None
        with suppress(NotFound):
            revision = await in_thread(read_revision, self._store, self.endpoint, named)
            self._notified.set()  # there may be a newer one already
            return revision
        return None

    async def _attempt(self, revision: Revision) -> None:
        self._attempts.begin(revision)
        try:
            await self._take_over(revision, reached(revision.number), heeds_news=True)
        except Superseded:
            logger.info("revision %d is left for a newer one while it was loading", revision.number)
        except PermanentError as failure:
            self._failed(revision, failure)
            self._attempts.refuse(revision)
            self._judge.give_up(revision, _sentence(failure))
            if not self._router.table.routes:
                await self._fall_back(revision)
        except Exception as failure:
            if not isinstance(failure, ModelyardError):
                logger.exception("revision %d", revision.number)
            self._failed(revision, failure)
            if self._attempts.is_beyond_loading(revision):
                self._judge.give_up(revision, f"it was not ready in time: {_sentence(failure)}")
            self._attempts.rest()

    async def _fall_back(self, refused: Revision) -> None:
        """Serve the newest earlier revision that works: better than nothing, and the status says so."""
        for number in range(refused.number - 1, max(0, refused.number - 1 - FALLBACK_REVISIONS), -1):
            try:
                earlier = await in_thread(read_revision, self._store, self.endpoint, number)
                await self._take_over(earlier, self.progress)
            except Exception as failure:  # noqa: BLE001 (an even earlier one may work)
                logger.warning("revision %d cannot be served either: %s", number, failure)
                continue
            break

    def _failed(self, revision: Revision, failure: Exception) -> None:
        logger.error("revision %d was not taken over: %s", revision.number, failure)
        self.progress = Progress(attempted=revision.number, error=_sentence(failure), is_known=True)

    def _complain(self, sentence: str) -> None:
        """Say once what every poll meets again while the bucket is away."""
        topic = sentence.partition(":")[0]
        if topic not in self._complaints:
            self._complaints.add(topic)
            logger.warning(sentence)

    # -- one revision ---------------------------------------------------------------------------------

    async def _take_over(self, revision: Revision, progress: Progress, *, heeds_news: bool = False) -> None:
        """Start what the revision needs, switch, retire what it does not.

        Args:
            progress: what the status shall say from the switch on.
            heeds_news: whether to leave it for a newer revision that comes while versions are being started.

        Raises:
            ModelyardError: a version cannot be served; nothing changed.
            Superseded: there is a newer revision; nothing changed.
        """
        missing = [
            (model, served)
            for model, wanted in revision.models.items()
            for served in wanted.versions
            if version_key(model, served) not in self._running
        ]
        started = await self._start_all(revision, missing, heeds_news=heeds_news) if missing else []
        running = self._running | {version.key: version for version in started}
        try:
            refuse_other_schemas(revision, running)
        except PermanentError:
            await asyncio.gather(*(version.stop(0) for version in started))
            raise
        self._running = running
        self._switch(revision, progress)
        await self._warm_previous(revision)
        self._retire(revision)
        await in_thread(self._cache.prune, _digests(revision))
        # Its flush to the disk may take long, and somebody may want to go back meanwhile.
        self._beside(self._remember(revision))

    async def _start_all(
        self, revision: Revision, missing: Sequence[tuple[str, ServedVersion]], *, heeds_news: bool
    ) -> list[RunningVersion]:
        """Start versions side by side, all of them or none, in the time that the revision's rollouts have for it.

        Raises:
            ModelyardError: the first one's error, or that it took too long.
            Superseded: there is a newer revision.
        """
        self._loading = [f"{model} version {served.version}" for model, served in missing]
        news = asyncio.create_task(self._newer_than(revision)) if heeds_news else None
        left, bound = self._attempts.loading_seconds(revision)
        try:
            return await self._loader.start_within(missing, left, news)
        except TimeoutError:
            raise EndpointUnavailable(
                f"{', '.join(self._loading)} took longer than {bound:g} s to fetch, load and probe"
                " (rollout.policy.load_seconds)"
            ) from None
        finally:
            self._loading = []

    async def _newer_than(self, revision: Revision) -> None:
        """Until the bucket has a newer revision: somebody may want to go back while a canary loads."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._limits.poll_seconds):
                    await self._notified.wait()
            self._notified.clear()
            with suppress(ModelyardError, ValueError):
                if await in_thread(latest_revision, self._store, self.endpoint, revision.number):
                    self._notified.set()
                    return

    def _switch(self, revision: Revision, progress: Progress) -> None:
        """The moment at which requests go elsewhere; no await in here."""
        self._router.table = Table(revision, {model: self._route(revision, model) for model in revision.models})
        self._judge.adopt(revision, lambda model, served: self._running[version_key(model, served)])
        self._attempts.succeed()
        self.progress = progress
        logger.info("serving revision %d: %s", revision.number, self.status().serving)

    def _route(self, revision: Revision, model: str) -> Route:
        wanted = revision.models[model]
        weighted = [(self._running[version_key(model, served)], served.weight) for served in wanted.versions]
        previous = self._running.get(version_key(model, wanted.previous)) if wanted.previous else None
        if wanted.rollout:
            (stable, _), (canary, weight) = weighted
            if weight == 0 or self._judge.is_condemned(wanted.rollout.id):
                return Route([(stable, 100.0)], previous, silent=canary)
        return Route(weighted, previous)

    async def _warm_previous(self, revision: Revision) -> None:
        """Have the way back running too. Going forward does not depend on it."""
        for model, wanted in revision.models.items():
            if wanted.previous is None or version_key(model, wanted.previous) in self._running:
                continue
            try:
                version = await self._loader.start(model, wanted.previous)
            except Exception as failure:  # noqa: BLE001 (going forward must not fail by the way back)
                logger.warning("%s version %s is not kept warm: %s", model, wanted.previous.version, failure)
                continue
            self._running[version.key] = version
            routes = dict(self._router.table.routes) | {model: self._route(revision, model)}
            self._router.table = Table(revision, routes)

    def _retire(self, revision: Revision) -> None:
        """Drain and end, beside the loop, what the revision does not name."""
        for key in set(self._running) - _keys(revision):
            self._beside(self._running.pop(key).stop(self._limits.drain_seconds))

    def _beside(self, work: Coroutine[Any, Any, None]) -> None:
        """Have something done while the loop goes on."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _remember(self, revision: Revision) -> None:
        """Keep a revision for a start without the bucket, unless a newer one is in force already."""
        async with self._remembering:
            if self._router.table.revision != revision:
                return
            try:
                await in_thread(self._state.write, revision)
            except OSError as failure:  # a full disk costs the next start without the bucket, not this one
                logger.warning("the local state cannot be kept: %s", failure)

    # -- the status in the bucket ---------------------------------------------------------------------

    async def _keep_published(self) -> None:
        """The status after each look at the bucket, until cancelled."""
        while True:
            await self._followed.wait()
            self._followed.clear()
            await self._publish()

    async def _publish(self) -> None:
        status = self.status()
        if status == self._published:
            return
        try:
            await in_thread(publish_status, self._store, self.endpoint, status)
        except ModelyardError as failure:
            self._complain(f"the status cannot be published: {failure}")
            return
        self._published = status


def _keys(revision: Revision) -> set[tuple[str, str, str, str]]:
    return {version_key(model, served) for model, served in _served(revision)}


def _digests(revision: Revision) -> set[str]:
    return {ref.digest for _, served in _served(revision) for ref in (served.artifact, served.verdict)}


def _served(revision: Revision) -> list[tuple[str, ServedVersion]]:
    """Every version a revision names, the previous ones included."""
    return [
        (model, served)
        for model, wanted in revision.models.items()
        for served in [*wanted.versions, *([wanted.previous] if wanted.previous else [])]
    ]


def _sentence(failure: BaseException) -> str:
    return str(failure) or type(failure).__name__
