"""The parts of the stack: their names, addresses and ports. What each needs is in `deployments/local/supervisord.conf`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from modelyard.errors import ConfigError
from modelyard.settings import ENV_PREFIX, Settings

GRPC_OFFSET = 10_000


@dataclass(frozen=True, kw_only=True)
class Part:
    """One program of the stack.

    Attributes:
        name: its name everywhere: supervisor, log file, tables.
        address: where it answers, as a person would open it.
        is_embedded: False when a setting points at one that somebody else runs.
        port_fields: settings that hold its ports.
        has_grpc_twins: whether each of those ports has a second one 10,000 above.
    """

    name: str
    address: Callable[[Settings], str]
    is_embedded: Callable[[Settings], bool]
    port_fields: Sequence[str] = ()
    has_grpc_twins: bool = False

    def ports(self, settings: Settings) -> list[tuple[int, str]]:
        """Every port it listens on, with the variable that moves it."""
        pairs = [(int(getattr(settings, field)), ENV_PREFIX + field.upper()) for field in self.port_fields]
        twins = [(port + GRPC_OFFSET, variable) for port, variable in pairs if self.has_grpc_twins]
        return pairs + twins


STORE = Part(
    name="store",
    address=lambda settings: settings.store_url,
    is_embedded=lambda settings: not settings.s3_endpoint_url,
    port_fields=("store_port", "store_master_port", "store_volume_port", "store_filer_port", "store_admin_port"),
    has_grpc_twins=True,
)
MLFLOW = Part(
    name="mlflow",
    address=lambda settings: settings.tracking_url,
    is_embedded=lambda settings: not settings.mlflow_tracking_uri,
    port_fields=("mlflow_port",),
)
PREFECT = Part(
    name="prefect",
    address=lambda settings: settings.api_url.removesuffix("/api"),
    is_embedded=lambda settings: not settings.prefect_api_url,
    port_fields=("prefect_port",),
)
# Flow runs need hands wherever the Prefect server is.
WORKER = Part(
    name="worker",
    address=lambda settings: f"work pool {settings.work_pool}",
    is_embedded=lambda _: True,
)
ENDPOINT = Part(
    name="endpoint",
    address=lambda settings: settings.serving_url,
    is_embedded=lambda settings: not settings.endpoint_url,
    port_fields=("endpoint_port",),
)
PARTS = (STORE, MLFLOW, PREFECT, WORKER, ENDPOINT)


def named(names: Sequence[str]) -> tuple[Part, ...]:
    """The parts of these names, in starting order; all of them for an empty list.

    Raises:
        ConfigError: a name that is no part.
    """
    known = [part.name for part in PARTS]
    for name in names:
        if name not in known:
            raise ConfigError("PART", f"{name!r} is not a part of the stack; choose from {', '.join(known)}")
    return tuple(part for part in PARTS if not names or part.name in names)
