"""The router process of the endpoint, `python -m modelyard.serve`.

Listens on ``MODELYARD_HOST``:``MODELYARD_ENDPOINT_PORT`` and serves what the newest revision of the endpoint
``MODELYARD_ENDPOINT_NAME`` names. It starts, and goes on serving, while the bucket, Prefect and MLflow are away.
SIGTERM or SIGINT: no new connections, what is in flight is answered, the workers end, exit status 0.
"""

from __future__ import annotations

import asyncio
import logging
import platform
import resource
import signal
import socket
import subprocess
import sys
from dataclasses import replace

import uvloop

from modelyard.catalog import Catalog
from modelyard.errors import ModelyardError
from modelyard.serve.app import EndpointApp
from modelyard.serve.cache import Cache
from modelyard.serve.keys import Guard, keys_file
from modelyard.serve.limits import Limits
from modelyard.serve.reconcile import Reconciler
from modelyard.serve.router import Router
from modelyard.serve.running import RunningVersion
from modelyard.serve.server import http_server, listen
from modelyard.serve.starting import StartedWorker
from modelyard.serve.state import LocalState
from modelyard.serve.verifier import Verifier
from modelyard.serve.workers import SubprocessPool
from modelyard.settings import Settings, load_settings
from modelyard.storage import Store

logger = logging.getLogger("modelyard.serve")

SPARE_FILES = 256  # for workers, the bucket and the cache


def run(first_worker: StartedWorker, first_verifier: subprocess.Popen[bytes]) -> None:
    """Serve until a signal says stop; exits with a sentence where it cannot begin."""
    try:
        settings = load_settings()
        logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        listener = listen(settings)
        uvloop.run(serve(settings, listener, admit_connections(Limits()), first_worker, first_verifier))
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


async def serve(
    settings: Settings,
    listener: socket.socket,
    limits: Limits,
    first_worker: StartedWorker,
    first_verifier: subprocess.Popen[bytes],
) -> None:
    """Serve until a signal says stop, then finish what was begun."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    app, reconciler = build(settings, limits, first_worker, first_verifier)
    following = asyncio.create_task(reconciler.run())
    server = http_server(app)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    logger.info("endpoint %s on http://%s:%d", settings.endpoint_name, *listener.getsockname()[:2])
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait([stopped, serving, following], return_when=asyncio.FIRST_COMPLETED)
    app.is_draining = True
    logger.info("stopping: %d requests in flight", app.num_in_flight)
    await server.drain(app, limits)
    following.cancel()
    await serving
    await reconciler.close()
    if following.done() and not following.cancelled():
        following.result()  # it never returns: an error here is a defect, and must not look like a clean exit


def build(
    settings: Settings,
    limits: Limits,
    first_worker: StartedWorker | None = None,
    first_verifier: subprocess.Popen[bytes] | None = None,
) -> tuple[EndpointApp, Reconciler]:
    """Everything that answers, wired together."""
    store = Store(settings)
    folder = settings.home / "endpoint"
    verifier: Verifier | None = Verifier(settings.trusted_keys_folder, first_verifier)
    if settings.endpoint_signatures == "off":
        verifier.close()
        verifier = None
    router = Router(limits)

    def count_restart(version: RunningVersion) -> None:
        app.metrics.count_restart(version.model, version.served.version)

    reconciler = Reconciler(
        settings.endpoint_name,
        f"{platform.node()}-{settings.endpoint_port}",
        store=store,
        cache=Cache(folder / "cache", Catalog(store), verifier),
        state=LocalState(folder / "state.json"),
        pool=SubprocessPool(limits, first_worker),
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
        ),
    )
    return app, reconciler
