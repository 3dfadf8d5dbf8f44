"""When is a part ready? When it does what it is there for, not when its port is open. Every wait is bounded."""

from __future__ import annotations

import base64
import os
import socket
import ssl
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from commands.supervision import ProgramState
from modelyard.errors import ModelyardError, StackFailed, StoreRefused, TransientError
from modelyard.settings import Settings
from modelyard.storage import Store

# Generous: a first start migrates two databases on a machine that may be busy.
BOUND_SECONDS = {"store": 45.0, "mlflow": 120.0, "prefect": 120.0, "worker": 60.0, "endpoint": 60.0}
REQUEST_SECONDS = 5.0
TAIL_LINES = 15


class NotYet(Exception):
    """The part does not answer as it should, so far."""


def wait_for(
    name: str, settings: Settings, state: Callable[[], ProgramState | None], since: datetime | None = None
) -> float:
    """Seconds until the part is ready.

    Args:
        state: what the supervisor says of it; None when somebody else runs it.
        since: the worker must have reported to Prefect after this time.

    Raises:
        StackFailed: it gave up, or the bound passed; ends with the tail of its log.
        StoreRefused: the store does not take our credentials.
    """
    check = CHECKS[name]
    began = time.monotonic()
    problem = "it has not answered yet"
    while time.monotonic() - began < BOUND_SECONDS[name]:
        program = state()
        if program and program.state == "FATAL":
            raise _failed(name, settings, f"gave up: {program.problem or 'it exits as soon as it starts'}")
        try:
            check(settings, since)
            return time.monotonic() - began
        except (NotYet, TransientError, httpx.HTTPError, OSError) as not_yet:
            problem = str(not_yet) or type(not_yet).__name__
        time.sleep(0.1)
    raise _failed(name, settings, f"is not ready after {BOUND_SECONDS[name]:.0f} s: {problem}")


def tail(path: Path, num_lines: int) -> str:
    """The last lines of a log."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 400 * num_lines))
        lines = file.read().decode(errors="replace").splitlines()
    return "\n".join(lines[-num_lines:])


def _failed(name: str, settings: Settings, problem: str) -> StackFailed:
    log = settings.home / "logs" / f"{name}.log"
    last_words = tail(log, TAIL_LINES)
    return StackFailed(f"{name} {problem}" + (f"\nThe end of {log}:\n{last_words}" if last_words else ""))


def _store(settings: Settings, _: datetime | None) -> None:
    """Create the bucket, then put, get and refuse a second create."""
    address = urlsplit(settings.store_url)
    port = address.port or (443 if address.scheme == "https" else 80)
    # Cheaper to ask the port first: the S3 clients back off for seconds when nobody listens.
    socket.create_connection((address.hostname or "", port), timeout=REQUEST_SECONDS).close()
    store = Store(settings.model_copy(update={"s3_timeout_seconds": REQUEST_SECONDS}))
    store.control.create_bucket()  # wrong credentials are refused here, and trying again would not help
    try:
        store.probe()
    except StoreRefused as refused:
        raise NotYet(str(refused)) from refused  # a bucket that is being made is refused for a moment


def _mlflow(settings: Settings, _: datetime | None) -> None:
    """A search, which reads the database."""
    if not settings.tracking_url.startswith("http"):
        return  # a database or folder URI: MLflow's client opens it itself
    url = f"{settings.tracking_url.rstrip('/')}/api/2.0/mlflow/experiments/search"
    with _client(settings.mlflow_tracking_uri is None) as client:
        _expect_ok(client.post(url, json={"max_results": 1}, headers=_mlflow_headers()))


def _prefect(settings: Settings, _: datetime | None) -> None:
    """Health, then a query, which reads the database."""
    with _client(settings.prefect_api_url is None) as client:
        _expect_ok(client.get(f"{settings.api_url}/health", headers=prefect_headers()))
        _expect_ok(client.post(f"{settings.api_url}/flows/count", json={}, headers=prefect_headers()))


def _worker(settings: Settings, since: datetime | None) -> None:
    """Prefect must have heard from a worker of our pool, after this one was started."""
    url = f"{settings.api_url}/work_pools/{settings.work_pool}/workers/filter"
    with _client(settings.prefect_api_url is None) as client:
        answer = _expect_ok(client.post(url, json={}, headers=prefect_headers()))
    heard = [worker for worker in answer.json() if worker["status"] == "ONLINE"]
    if not any(_instant(worker["last_heartbeat_time"]) >= (since or _instant(None)) for worker in heard):
        raise NotYet(f"no worker of the pool {settings.work_pool!r} has reported to Prefect")


def _endpoint(settings: Settings, _: datetime | None) -> None:
    with _client(settings.endpoint_url is None, settings.endpoint_trust) as client:
        _expect_ok(client.get(f"{settings.serving_url}/readyz"))


CHECKS: dict[str, Callable[[Settings, datetime | None], None]] = {
    "store": _store,
    "mlflow": _mlflow,
    "prefect": _prefect,
    "worker": _worker,
    "endpoint": _endpoint,
}


def failing_check(name: str, settings: Settings) -> str | None:
    """One try, now: what is wrong with the part, or None."""
    try:
        CHECKS[name](settings, None)
    except (NotYet, ModelyardError, httpx.HTTPError, OSError) as failure:
        return str(failure) or type(failure).__name__
    return None


def prefect_headers() -> dict[str, str]:
    """How Prefect's own client would identify itself to an outside server."""
    if key := os.environ.get("PREFECT_API_KEY"):
        return {"Authorization": f"Bearer {key}"}
    if pair := os.environ.get("PREFECT_API_AUTH_STRING"):
        return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
    return {}


def _mlflow_headers() -> dict[str, str]:
    if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        return {"Authorization": f"Bearer {token}"}
    user, password = (os.environ.get(f"MLFLOW_TRACKING_{name}") for name in ("USERNAME", "PASSWORD"))
    if user and password:
        return {"Authorization": f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"}
    return {}


def _client(is_embedded: bool, trust: ssl.SSLContext | bool = True) -> httpx.Client:
    """A proxy of the environment must not be asked for our own machine."""
    return httpx.Client(timeout=REQUEST_SECONDS, trust_env=not is_embedded, follow_redirects=True, verify=trust)


def _expect_ok(answer: httpx.Response) -> httpx.Response:
    if answer.status_code != httpx.codes.OK:
        raise NotYet(f"{answer.request.url} answered {answer.status_code}: {answer.text[:200]}")
    return answer


def _instant(text: str | None) -> datetime:
    return datetime.fromisoformat(text) if text else datetime.min.replace(tzinfo=UTC)
