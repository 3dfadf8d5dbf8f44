"""The router process of the endpoint, a child of `python -m modelyard.serve`.

Listens on ``MODELYARD_HOST``:``MODELYARD_ENDPOINT_PORT`` and serves what the newest revision of the endpoint
``MODELYARD_ENDPOINT_NAME`` names. It starts, and goes on serving, while the bucket, Prefect and MLflow are away.
SIGTERM or SIGINT: no new connections, what is in flight is answered, the workers end, exit status 0. SIGUSR1 says the
same with more patience: a successor accepts from the same socket, and idle clients may take their time to leave.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import platform
import resource
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, replace

import uvloop

from modelyard.audit import AuditLog
from modelyard.catalog import Catalog
from modelyard.errors import EndpointUnavailable, ModelyardError
from modelyard.serve.app import EndpointApp
from modelyard.serve.cache import Cache
from modelyard.serve.disclosure import Disclosure
from modelyard.serve.group import GroupPool
from modelyard.serve.keeper import BOUND, READY, Inheritance
from modelyard.serve.keys import Guard, keys_file
from modelyard.serve.limits import Limits
from modelyard.serve.metering import Meter
from modelyard.serve.reconcile import Reconciler
from modelyard.serve.recording import Recorder
from modelyard.serve.router import Router
from modelyard.serve.running import RunningVersion
from modelyard.serve.server import http_server, listen
from modelyard.serve.starting import StartedProcess, give_back_memory
from modelyard.serve.state import LocalState
from modelyard.serve.threads import in_thread
from modelyard.serve.tls import Tls, tls_of
from modelyard.serve.verifier import Verifier
from modelyard.serve.workers import SubprocessPool, WorkerPool
from modelyard.settings import Settings, load_settings
from modelyard.storage import Store

logger = logging.getLogger("modelyard.serve")

SPARE_FILES = 256  # for workers, the bucket and the cache


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Processes that were started before the router's imports, to be used first."""

    worker: StartedProcess | None = None
    verifier: subprocess.Popen[bytes] | None = None


def run(inheritance: Inheritance, prepared: Prepared) -> None:
    """Serve until a signal says stop; exits with a sentence where it cannot begin."""
    try:
        settings = load_settings()
        logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        tls = tls_of(settings)  # before the socket is known to the parent, who would try again and again
        listener = inheritance.listener
        if listener is None:
            listener = listen(settings)
            socket.send_fds(inheritance.control, [BOUND], [listener.fileno()])
        uvloop.run(Serving(settings, listener, inheritance, prepared, tls).run())
    except ModelyardError as failure:
        sys.exit(f"{type(failure).__name__}: {failure}")


def admit_connections(limits: Limits) -> Limits:
    """Allow this process as many open files as its connections need, or it fewer connections where that is refused."""
    wanted = limits.max_connections + SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    return replace(limits, max_connections=allowed - SPARE_FILES)


class Serving:
    """One router from its first look at the local state to its last answer."""

    def __init__(
        self,
        settings: Settings,
        listener: socket.socket,
        inheritance: Inheritance,
        prepared: Prepared,
        tls: Tls | None = None,
    ) -> None:
        self._settings = settings
        self._tls = tls
        self._listener = listener
        self._inheritance = inheritance
        self._limits = admit_connections(Limits())
        self._prepared = prepared
        self._stop = asyncio.Event()
        self._leave = asyncio.Event()

    async def run(self) -> None:
        """Serve until a signal says stop, then finish what was begun.

        Raises:
            EndpointUnavailable: it was to replace another router, and cannot answer in time.
        """
        self._watch()
        tls = self._tls
        app, reconciler = build(self._settings, self._limits, self._prepared)
        following = asyncio.create_task(reconciler.run())
        keeping = asyncio.create_task(keep_books(app, self._limits, tls))
        await self._await_state(reconciler)
        gc.enable()  # `__main__` switched it off
        give_back_memory()
        server = http_server(app, tls.context if tls else None)
        serving = asyncio.create_task(server.serve(sockets=[self._listener]))
        scheme, address = "https" if tls else "http", self._listener.getsockname()[:2]
        logger.info("endpoint %s on %s://%s:%d", self._settings.endpoint_name, scheme, *address)
        ends = [asyncio.create_task(event.wait()) for event in (self._stop, self._leave)]
        await asyncio.wait([*ends, serving, following], return_when=asyncio.FIRST_COMPLETED)
        app.is_draining = True
        following.cancel()  # whoever comes next follows the bucket
        logger.info("leaving: %d requests in flight, %d connections", app.num_in_flight, server.num_connections)
        await server.drain(app, self._limits, self._stop if self._leave.is_set() else None)
        await serving
        await reconciler.close()
        keeping.cancel()
        app.guard.meter.save()
        if app.inferences.recorder:
            await app.inferences.recorder.close()
        if following.done() and not following.cancelled():
            following.result()  # it never returns: an error here is a defect, and must not look like a clean exit

    def _watch(self) -> None:
        """Know what the parent says, and that it is gone: another one will need the port."""
        loop, control = asyncio.get_running_loop(), self._inheritance.control
        for number, event in ((signal.SIGTERM, self._stop), (signal.SIGINT, self._stop), (signal.SIGUSR1, self._leave)):
            loop.add_signal_handler(number, event.set)

        def hung_up() -> None:
            loop.remove_reader(control)
            self._stop.set()

        loop.add_reader(control, hung_up)

    async def _await_state(self, reconciler: Reconciler) -> None:
        """Accept nobody before the local state is served: whoever comes meanwhile waits in the socket's queue."""
        loop, limits = asyncio.get_running_loop(), self._limits
        is_successor = self._inheritance.is_successor
        deadline = loop.time() + (limits.load_seconds if is_successor else limits.accept_seconds)
        while reconciler.not_ready_because and loop.time() < deadline and not self._stop.is_set():
            if reconciler.progress.error and not is_successor:
                return  # to say so is all that it can do
            await asyncio.sleep(0.005)
        if is_successor and (reason := reconciler.not_ready_because):
            await reconciler.close()
            raise EndpointUnavailable(f"not ready after {limits.load_seconds:g} s, so another router goes on: {reason}")
        self._inheritance.control.send(READY)


async def keep_books(app: EndpointApp, limits: Limits, tls: Tls | None) -> None:
    """Carry the audit log to the bucket, save the day's counts and look for another certificate, now and then, until
    cancelled."""
    while True:
        try:
            if tls:
                tls.refresh()
            await in_thread(app.guard.meter.save)
            if app.audit and app.audit.has_news():
                await in_thread(app.audit.carry, app.store)
        except (ModelyardError, OSError) as failure:
            logger.warning("the books cannot be kept: %s", failure)
        await asyncio.sleep(limits.poll_seconds)


def _pool(settings: Settings, limits: Limits, prepared: Prepared) -> WorkerPool:
    """Workers of this machine, or of a cluster."""
    if not settings.endpoint_ray:
        most = settings.endpoint_worker_mb
        return SubprocessPool(limits, prepared.worker, most * 2**20 if most else None)
    if prepared.worker:  # it was started before anything was known
        prepared.worker.connection.close()
        prepared.worker.process.kill()
        prepared.worker.process.wait()
    from modelyard.serve.ray_workers import RayPool

    return RayPool(settings.endpoint_ray, limits)


def build(
    settings: Settings,
    limits: Limits,
    prepared: Prepared = Prepared(),
) -> tuple[EndpointApp, Reconciler]:
    """Everything that answers, wired together."""
    store = Store(settings)
    folder = settings.home / "endpoint"
    verifier: Verifier | None = Verifier(settings.trusted_keys_folder, prepared.verifier)
    if settings.endpoint_signatures == "off":
        verifier.close()
        verifier = None
    limits = replace(limits, max_unanswered_batches=limits.max_unanswered_batches * settings.endpoint_workers)
    pool = _pool(settings, limits, prepared)
    router = Router(limits)
    replica = f"{platform.node()}-{settings.endpoint_port}"

    def count_restart(version: RunningVersion) -> None:
        app.metrics.count_restart(version.model, version.served.version)

    reconciler = Reconciler(
        settings.endpoint_name,
        replica,
        store=store,
        cache=Cache(folder / "cache", Catalog(store), verifier),
        state=LocalState(folder / "state.json"),
        pool=pool if settings.endpoint_workers == 1 else GroupPool(pool, settings.endpoint_workers, limits),
        router=router,
        limits=limits,
        on_restart=count_restart,
    )
    token = settings.endpoint_admin_token
    app = EndpointApp(
        settings.endpoint_name,
        router=router,
        reconciler=reconciler,
        limits=limits,
        guard=Guard(
            keys_file(settings),
            admin_token=token.get_secret_value() if token else None,
            is_required=settings.endpoint_needs_keys,
            meter=Meter(folder / "usage"),
        ),
        audit=AuditLog(settings),
        store=store,
        recorder=Recorder(settings, replica, limits) if settings.endpoint_record else None,
        disclosure=Disclosure(
            decimals=settings.endpoint_decimals,
            raw_outputs=settings.endpoint_raw_outputs,
            top=settings.endpoint_top_k,
        ),
    )
    return app, reconciler
