"""The endpoint as seen from outside: told that there is news, asked how far it has come."""

from __future__ import annotations

import logging
import time
from typing import Any, Self

import httpx

from modelyard.errors import EndpointUnavailable, PermanentError, RolloutFailed
from modelyard.revisions import ModelState, ReplicaStatus, Revision, propose_revision
from modelyard.settings import Settings
from modelyard.storage import Store

log = logging.getLogger(__name__)

REQUEST_SECONDS = 5.0
POLL_SECONDS = 0.1


def status_of(page: dict[str, Any]) -> ReplicaStatus:
    """The published part of what an endpoint says about itself."""
    return ReplicaStatus.model_validate({key: page[key] for key in ReplicaStatus.model_fields if key in page})


class EndpointClient:
    """The admin side of one endpoint."""

    def __init__(self, settings: Settings) -> None:
        self.url = settings.serving_url
        self._endpoint = settings.endpoint_name
        self._client = httpx.Client(
            base_url=self.url,
            headers=settings.endpoint_headers,
            timeout=REQUEST_SECONDS,
            trust_env=False,
            verify=settings.endpoint_trust,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._client.close()

    def notify(self, revision: int = 0) -> None:
        """Say that a newer revision may be there, and which. It would find it by itself a little later."""
        self._request("POST", f"/admin/notify?revision={revision}" if revision else "/admin/notify")

    def status(self) -> ReplicaStatus:
        """How far the endpoint has come."""
        return status_of(self.page())

    def page(self) -> dict[str, Any]:
        """All it says about itself: processes, weights, rollouts."""
        return self._request("GET", "/admin/status").json()

    def take_over(self, store: Store, model: str, revision: Revision, before: Revision, bound_seconds: float) -> None:
        """Wait until it serves a revision that changed one model; where it refuses, make the ledger say what really serves.

        Raises:
            RolloutFailed: it refused.
            EndpointUnavailable: it did not get there within the bound.
        """
        try:
            self.await_revision(revision.number, bound_seconds)
        except RolloutFailed as refusal:
            self._restore(store, model, revision, before, str(refusal))
            self.notify()
            raise

    def _restore(self, store: Store, model: str, failed: Revision, before: Revision, reason: str) -> None:
        """Write the model's earlier state as the next revision, unless somebody has changed that model meanwhile.

        Other models may have moved on: they stay where they are now, and this one must not keep them from being served.
        """
        earlier = {model: before.models[model]} if model in before.models else {}

        def change(current: Revision) -> dict[str, ModelState] | None:
            if current.models.get(model) != failed.models.get(model):
                return None
            restored = {name: state for name, state in current.models.items() if name != model} | earlier
            return None if restored == current.models else restored

        decision = failed.decision
        if decision:
            decision = decision.model_copy(update={"action": "restore", "reasons": [reason]})
        restored = propose_revision(
            store, self._endpoint, change, reason=reason, author="modelyard.rollout", decision=decision
        )
        log.warning("revision %s restores what served of %s before revision %s", restored.number, model, failed.number)

    def await_revision(self, number: int, bound_seconds: float) -> ReplicaStatus:
        """Wait until the endpoint serves a revision.

        Raises:
            RolloutFailed: it tried and refused; carries its reason. Where it tries a later one already, whose fault that is
                shows only when the bound is over: another model's may be mended by then.
            EndpointUnavailable: it did not get there within the bound.
        """
        deadline = time.monotonic() + bound_seconds
        while True:
            status = self.status()
            if status.revision >= number:
                return status
            is_late = time.monotonic() > deadline
            if status.error and (status.attempted == number or (status.attempted > number and is_late)):
                raise RolloutFailed(f"endpoint {self.url} refused revision {number}: {status.error}")
            if is_late:
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
