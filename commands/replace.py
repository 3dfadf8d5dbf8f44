"""`modelyard replace`: another router for the endpoint, without a failed request."""

from __future__ import annotations

import time
from typing import Annotated

import httpx
import typer
from rich.console import Console

from commands.parts import ENDPOINT
from commands.supervision import Supervisor
from modelyard.errors import EndpointUnavailable, StackFailed
from modelyard.settings import Settings, load_settings

POLL_SECONDS = 0.1
REQUEST_SECONDS = 5.0


def replace(
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the new router to answer.", min=1)] = 130,
) -> None:
    """Start a new router of the endpoint, with the code and settings of now; the old one answers what it has and leaves."""
    settings = load_settings()
    before, after = replace_router(settings, timeout)
    Console(soft_wrap=True, highlight=False).print(f"router {after} answers, {before} leaves with its last client")


def replace_router(settings: Settings, bound_seconds: float) -> tuple[int, int]:
    """Have the embedded endpoint replace its router; returns the process ids of the old and the new one.

    Raises:
        StackFailed: the endpoint does not run here.
        EndpointUnavailable: no new router answered in time; the old one goes on.
    """
    supervisor = Supervisor(settings.home)
    program = supervisor.states().get(ENDPOINT.name)
    if program is None or not program.is_alive:
        raise StackFailed("the endpoint does not run here; where it does, send SIGHUP to `python -m modelyard.serve`")
    with httpx.Client(
        base_url=settings.serving_url,
        headers=settings.endpoint_headers,
        timeout=REQUEST_SECONDS,
        trust_env=False,
        verify=settings.endpoint_trust,
    ) as client:
        before = _router_pid(client)
        supervisor.signal(ENDPOINT.name, "HUP")
        deadline = time.monotonic() + bound_seconds
        while time.monotonic() < deadline:
            # The old router tells its clients to leave; this one comes back to whoever accepts then.
            if (now := _router_pid(client)) != before:
                return before, now
            time.sleep(POLL_SECONDS)
    raise EndpointUnavailable(
        f"no new router answered within {bound_seconds:g} s; the old one goes on, and `modelyard logs endpoint` says why"
    )


def _router_pid(client: httpx.Client) -> int:
    try:
        return client.get("/admin/status", headers={"Connection": "close"}).raise_for_status().json()["router_pid"]
    except httpx.HTTPError as failure:
        raise EndpointUnavailable(f"{client.base_url}: {failure or type(failure).__name__}") from failure
