"""The listening socket, and uvicorn's server around our connections, plain or over TLS."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
from collections.abc import Callable, Generator
from functools import partial
from typing import cast

import uvicorn

from modelyard.errors import ConfigError, PortTaken
from modelyard.serve.app import EndpointApp
from modelyard.serve.http import HttpProtocol
from modelyard.serve.limits import Limits
from modelyard.settings import Settings

BACKLOG = 4096  # connections that wait while no router accepts; the kernel may allow fewer
SWEEP_TICKS = 5  # of uvicorn's, 0.1 s each
GOODBYE_SECONDS = 1.0  # for a client over TLS to say goodbye too


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
    listener.listen(BACKLOG)
    return listener


def http_server(app: EndpointApp, context: ssl.SSLContext | None = None) -> Server:
    """uvicorn with our connections, and without what the endpoint does itself or not at all.

    Args:
        context: of TLS; None: plain HTTP.
    """
    protocol = partial(HttpProtocol, endpoint=app)
    return Server(
        uvicorn.Config(
            app,
            http=cast("type[asyncio.Protocol]", protocol),
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            log_level="warning",
            server_header=False,
            date_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=1,
            backlog=BACKLOG,
        ),
        protocol,
        context,
        app.limits,
    )


class Server(uvicorn.Server):
    """uvicorn without its signal handling, with bounds on TLS, and with an end that drops nobody."""

    def __init__(
        self,
        config: uvicorn.Config,
        protocol: Callable[..., HttpProtocol],
        context: ssl.SSLContext | None,
        limits: Limits,
    ) -> None:
        super().__init__(config)
        self._protocol = protocol
        self._context = context
        self._limits = limits

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept from these sockets. uvicorn's own has no bound on the handshake but a minute."""
        if not self.config.loaded:
            self.config.load()
        shaking, leaving = (self._limits.head_seconds, GOODBYE_SECONDS) if self._context else (None, None)
        make = partial(self._protocol, config=self.config, server_state=self.server_state, app_state={})
        loop = asyncio.get_running_loop()
        self.servers = [
            await loop.create_server(
                make,
                sock=one,
                backlog=BACKLOG,
                ssl=self._context,
                ssl_handshake_timeout=shaking,
                ssl_shutdown_timeout=leaving,
            )
            for one in sockets or ()
        ]
        self.started = True

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield

    async def on_tick(self, counter: int) -> bool:
        """Called by uvicorn's main loop: end connections whose time is over."""
        if counter % SWEEP_TICKS == 0:
            now = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                cast("HttpProtocol", connection).expire_by(now)
        return await super().on_tick(counter)

    @property
    def num_connections(self) -> int:
        return len(self.server_state.connections)

    async def drain(self, app: EndpointApp, limits: Limits, hurry: asyncio.Event | None = None) -> None:
        """Accept nobody, answer everybody; idle clients get time to send one more request and be told.

        Args:
            hurry: where a successor accepts meanwhile there is no haste, until this is set.
        """
        for server in getattr(self, "servers", []):
            server.close()
        loop = asyncio.get_running_loop()
        begun, has_time = loop.time(), hurry is not None
        while self.num_connections:
            if has_time and hurry and hurry.is_set():
                begun, has_time = loop.time(), False
            passed = loop.time() - begun
            is_idle = not (app.num_in_flight or self.server_state.tasks)
            bounds = (limits.handover_seconds,) * 2 if has_time else (limits.idle_seconds, limits.shutdown_seconds)
            if passed > bounds[0 if is_idle else 1]:
                break
            await asyncio.sleep(0.02)
        self.should_exit = True
