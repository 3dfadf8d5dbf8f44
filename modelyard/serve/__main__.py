"""The router process of the endpoint.

    python -m modelyard.serve

Listens on ``MODELYARD_HOST``:``MODELYARD_ENDPOINT_PORT`` and serves what the newest revision of the endpoint
``MODELYARD_ENDPOINT_NAME`` names. It starts, and goes on serving, while the bucket, Prefect and MLflow are away.
SIGTERM or SIGINT: no new connections, what is in flight is answered, the workers end, exit status 0.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import platform
import signal
import socket
import sys
from collections.abc import Generator
from functools import partial
from typing import cast

import uvicorn
import uvloop

from modelyard.catalog import Catalog
from modelyard.errors import ConfigError, ModelyardError, PortTaken
from modelyard.serve.app import EndpointApp
from modelyard.serve.cache import Cache
from modelyard.serve.http import HttpProtocol
from modelyard.serve.limits import Limits
from modelyard.serve.reconcile import Reconciler
from modelyard.serve.router import Router
from modelyard.serve.running import RunningVersion
from modelyard.serve.state import LocalState
from modelyard.serve.workers import SubprocessPool
from modelyard.settings import Settings, load_settings
from modelyard.storage import Store

logger = logging.getLogger("modelyard.serve")

KEEP_ALIVE_SECONDS = 75  # longer than the pools of usual clients keep an idle connection


def main() -> None:
    try:
        settings = load_settings()
        logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        listener = listen(settings)
        uvloop.run(serve(settings, listener, Limits()))
    except ModelyardError as failure:
        sys.exit(f"{type(failure).__name__}: {failure}")


async def serve(settings: Settings, listener: socket.socket, limits: Limits) -> None:
    """Serve until a signal says stop, then finish what was begun."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    app, reconciler = build(settings, limits)
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


def build(settings: Settings, limits: Limits) -> tuple[EndpointApp, Reconciler]:
    """Everything that answers, wired together."""
    store = Store(settings)
    folder = settings.home / "endpoint"
    router = Router(limits)

    def count_restart(version: RunningVersion) -> None:
        app.metrics.count_restart(version.model, version.served.version)

    reconciler = Reconciler(
        settings.endpoint_name,
        f"{platform.node()}-{settings.endpoint_port}",
        store=store,
        cache=Cache(folder / "cache", Catalog(store)),
        state=LocalState(folder / "state.json"),
        pool=SubprocessPool(limits),
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
        admin_token=token.get_secret_value() if token else None,
    )
    return app, reconciler


def http_server(app: EndpointApp) -> _Server:
    """uvicorn with our connections, and without what the endpoint does itself or not at all."""
    return _Server(
        uvicorn.Config(
            app,
            http=cast("type[asyncio.Protocol]", partial(HttpProtocol, endpoint=app)),
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            log_level="warning",
            server_header=False,
            date_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=1,
        )
    )


def listen(settings: Settings) -> socket.socket:
    """The listening socket.

    Raises:
        PortTaken: somebody else has it.
        ConfigError: the address is not of this machine.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.endpoint_port))
    except OSError as failure:
        listener.close()
        if failure.errno == errno.EADDRINUSE:
            raise PortTaken(settings.endpoint_port, "MODELYARD_ENDPOINT_PORT", None) from failure
        raise ConfigError("MODELYARD_HOST", f"{settings.host!r} cannot be listened on: {failure}") from failure
    return listener


class _Server(uvicorn.Server):
    """uvicorn without its signal handling, and with an end that drops nobody."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield

    async def drain(self, app: EndpointApp, limits: Limits) -> None:
        """Accept nobody, answer everybody; idle clients get a moment to send one more request and be told."""
        for server in getattr(self, "servers", []):
            server.close()
        loop = asyncio.get_running_loop()
        begun = loop.time()
        while self.server_state.connections and loop.time() - begun < limits.shutdown_seconds:
            busy = app.num_in_flight or self.server_state.tasks
            if not busy and loop.time() - begun > limits.idle_seconds:
                break
            await asyncio.sleep(0.02)
        self.should_exit = True


if __name__ == "__main__":
    main()
