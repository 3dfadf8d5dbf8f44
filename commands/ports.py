"""Is a port free? If not: whose is it, and which setting moves ours?"""

from __future__ import annotations

import errno
import random
import socket
from collections.abc import Iterable, Sequence
from contextlib import suppress

import psutil

from commands.parts import GRPC_OFFSET, Part
from modelyard.errors import ConfigError, PortTaken
from modelyard.settings import Settings


def check_free(settings: Settings, parts: Iterable[Part]) -> None:
    """Every port of these parts can be listened on. Parts of our own that run already must not be passed.

    Raises:
        PortTaken: names the port, its setting and, where the system tells, the process.
        ConfigError: two settings ask for the same port, or the host is not an address of this machine.
    """
    wanted: dict[int, str] = {}
    for part in parts:
        for port, variable in part.ports(settings):
            if port in wanted:
                raise ConfigError(variable, f"port {port} is asked for by {wanted[port]} too; choose another")
            wanted[port] = variable
            if not _is_free(settings.host, port):
                raise PortTaken(port, variable, owner_of(port))


def free_ports(count: int, among: Sequence[int]) -> list[int]:
    """Different ports, drawn from ``among``, that nobody uses now and whose gRPC twins are free too."""
    found: list[int] = []
    while len(found) < count:
        port = random.choice(among)
        if port not in found and _is_free("127.0.0.1", port) and _is_free("127.0.0.1", port + GRPC_OFFSET):
            found.append(port)
    return found


def owner_of(port: int) -> str | None:
    """``name (pid 123)`` of the process that listens there; None when the system does not say."""
    with suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("inet"):
            local = connection.laddr
            if connection.status == psutil.CONN_LISTEN and connection.pid and local and local.port == port:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return None


def _is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As servers do: a port whose last connections are still fading away counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as refused:
            if refused.errno == errno.EADDRINUSE:
                return False
            raise ConfigError("MODELYARD_HOST", f"cannot listen on {host!r}: {refused.strerror}") from None
    return True
