"""The endpoint as seen from outside: told that there is news, asked how far it has come."""

from __future__ import annotations

import time
from typing import Self

import httpx

from modelyard.errors import EndpointUnavailable, PermanentError, RolloutFailed
from modelyard.revisions import ReplicaStatus
from modelyard.settings import Settings

REQUEST_SECONDS = 5.0
POLL_SECONDS = 0.1


class EndpointClient:
    """The admin side of one endpoint."""

    def __init__(self, settings: Settings) -> None:
        self.url = settings.serving_url
        self._client = httpx.Client(
            base_url=self.url, headers=settings.endpoint_headers, timeout=REQUEST_SECONDS, trust_env=False
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._client.close()

    def notify(self) -> None:
        """Say that a newer revision may be there. It would find it by itself a little later."""
        self._request("POST", "/admin/notify")

    def status(self) -> ReplicaStatus:
        """How far the endpoint has come."""
        body = self._request("GET", "/admin/status").json()
        return ReplicaStatus.model_validate({key: body[key] for key in ReplicaStatus.model_fields if key in body})

    def await_revision(self, number: int, bound_seconds: float) -> ReplicaStatus:
        """Wait until the endpoint serves a revision.

        Raises:
            RolloutFailed: it tried and refused; carries its reason.
            EndpointUnavailable: it did not get there within the bound.
        """
        deadline = time.monotonic() + bound_seconds
        while True:
            status = self.status()
            if status.revision >= number:
                return status
            if status.attempted >= number and status.error:
                raise RolloutFailed(f"endpoint {self.url} refused revision {number}: {status.error}")
            if time.monotonic() > deadline:
                raise EndpointUnavailable(
                    f"endpoint {self.url} is at revision {status.revision} after {bound_seconds:g} s, wanted {number}"
                )
            time.sleep(POLL_SECONDS)

    def _request(self, method: str, path: str) -> httpx.Response:
        try:
            response = self._client.request(method, path)
        except httpx.HTTPError as failure:
            raise EndpointUnavailable(f"endpoint {self.url}{path}: {failure or type(failure).__name__}") from failure
        if response.status_code in (401, 403):
            raise PermanentError(f"endpoint {self.url} refused the admin token; set MODELYARD_ENDPOINT_ADMIN_TOKEN")
        if response.status_code >= 400:
            raise EndpointUnavailable(f"endpoint {self.url}{path}: HTTP {response.status_code} {response.text[:200]}")
        return response
