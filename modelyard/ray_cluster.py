"""A Ray cluster, as those see it who start something on it. Ray itself is imported when a cluster is reached."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import secrets
import socket

from modelyard.errors import ClusterUnavailable, ConfigError, MissingExtra

PROBE_SECONDS = 5.0
OBJECT_STORE_BYTES = 80_000_000  # near the least that Ray takes: nothing large passes through it
NODE_ADVICE = "make this machine a node of the cluster: ray start --address=<host:port> --num-cpus=0"


def require_ray(needed_for: str) -> None:
    """Say what is missing before anything is started.

    Raises:
        MissingExtra: Ray is not installed.
    """
    if importlib.util.find_spec("ray") is None:
        raise MissingExtra("ray", "ray", needed_for)


def ray_address(address: str) -> str:
    """``auto`` or ``host:port``, as it is.

    Raises:
        ValueError: it is neither.
    """
    if address == "auto" or re.fullmatch(r"[^:/\s]+:\d{1,5}", address):
        return address
    if address.startswith("ray://"):
        raise ValueError(
            f"{address} is that of Ray's client server, through which a cluster does not notice at once that who"
            f" started something is gone; {NODE_ADVICE}, and name that host:port, or 'auto'"
        )
    raise ValueError(f"{address!r} is neither host:port nor 'auto', the cluster that was started on this machine")


def connect(address: str, field: str) -> None:
    """Make this process a driver of a cluster: what it starts there ends with it.

    A socket that is open and says nothing is found out by Ray after more than a minute: who must not wait calls this
    where it can be given up.

    Args:
        address: as `ray_address` takes it.
        field: the setting or key that it comes from.

    Raises:
        MissingExtra: Ray is not installed.
        ClusterUnavailable: nothing answers there.
        ConfigError: that cluster runs another release of Ray or Python, or this machine is no node of it.
    """
    require_ray(field)
    if address != "auto":
        _probe(address)
    # Nothing is reported about a cluster that this process would be the first in; the same for what it is used for.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError as failure:
        raise ClusterUnavailable(f"no Ray cluster answers at {address}: {failure}") from failure
    except RuntimeError as failure:
        if "version" in str(failure).lower():
            raise ConfigError(field, f"{address} runs another release: {failure}") from failure
        raise ConfigError(field, f"{address} takes no driver from here ({failure}); {NODE_ADVICE}") from failure


def start_here(cpus: int, memory_bytes: int) -> None:
    """Start a cluster on this machine and make this process its driver; it ends with this process, however that ends.

    Args:
        cpus, memory_bytes: what the cluster may give to those who work in it.

    Raises:
        ClusterUnavailable: it did not come up.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # A secret of this cluster's own. Ray would write one into the user's home, and whoever finds a cluster by 'auto' afterwards
    # would present it to one that was started without, whose actors then die before they begin (2.60).
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    import ray

    try:
        ray.init(
            address="local",
            num_cpus=cpus,
            _memory=memory_bytes,
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, RuntimeError) as failure:
        raise ClusterUnavailable(f"no Ray cluster came up on this machine: {failure}") from failure


def _probe(address: str) -> None:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=PROBE_SECONDS).close()
    except (OSError, OverflowError) as failure:
        raise ClusterUnavailable(
            f"no Ray cluster answers at {address}: {failure}; start one there: ray start --head --port={port}"
        ) from failure
