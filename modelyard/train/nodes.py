"""How the nodes of one training find each other: torch's c10d rendezvous at an address that all of them reach."""

from __future__ import annotations

import socket

import psutil

from modelyard.errors import ConfigError
from modelyard.train.config import TrainConfig

# Nodes that come within this many seconds of the least that are needed begin together with them.
LAST_CALL_SECONDS = 3
# A node that is silent for three of these is taken for gone.
KEEP_ALIVE_SECONDS = 2


def launcher_options(config: TrainConfig, group: str) -> list[str]:
    """Arguments of torch's launcher that say where nodes meet.

    Args:
        group: a name that all nodes of one training, and no other, give.

    Raises:
        ConfigError: the meeting point cannot be reached from here.
    """
    if not config.meets:
        # The static rendezvous lost four of six groups after a killed rank; c10d recovers them.
        return ["--standalone"]
    own = own_address(config.rendezvous)
    settings = {
        # Guessing from host names fails where machines do not know their own.
        "is_host": int(own == _resolved(config.rendezvous)),
        "join_timeout": int(config.silence_seconds),
        "last_call_timeout": LAST_CALL_SECONDS,
        "keep_alive_interval": KEEP_ALIVE_SECONDS,
    }
    return [
        *("--nnodes", config.nodes, "--rdzv-backend", "c10d", "--rdzv-endpoint", config.rendezvous),
        *("--rdzv-id", group, "--local-addr", own),
        *("--rdzv-conf", ",".join(f"{name}={value}" for name, value in settings.items())),
    ]


def rank_variables(config: TrainConfig) -> dict[str, str]:
    """Environment that ranks need to reach those of other nodes: gloo's network interface."""
    return interface_variables(own_address(config.rendezvous)) if config.meets else {}


def interface_variables(own: str) -> dict[str, str]:
    """Has gloo use the network interface with this machine's address ``own``, where there is one."""
    interfaces = [
        name for name, addresses in psutil.net_if_addrs().items() if any(one.address == own for one in addresses)
    ]
    return {"GLOO_SOCKET_IFNAME": interfaces[0]} if interfaces else {}


def own_address(endpoint: str) -> str:
    """The address under which this machine is seen from an endpoint. Nothing is sent.

    Raises:
        ConfigError: there is no way there.
    """
    host, _, port = endpoint.rpartition(":")
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, int(port)))
            return str(probe.getsockname()[0])
    except OSError as failure:
        raise ConfigError("train.rendezvous", f"{endpoint} cannot be reached from here: {failure}") from failure


def _resolved(endpoint: str) -> str:
    return socket.gethostbyname(endpoint.rpartition(":")[0])
