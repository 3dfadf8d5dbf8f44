"""What every answer carries: which model, version and artifact it is of, and an id of its own; and what errors become."""

from __future__ import annotations

import secrets
from functools import lru_cache
from itertools import count
from urllib.parse import quote

from modelyard import request_ids
from modelyard.errors import DataError, EndpointUnavailable, NotFound
from modelyard.serve.answers import AGAIN, Header, Headers, HttpError
from modelyard.serve.batching import Overloaded
from modelyard.serve.limits import Limits
from modelyard.serve.router import Router
from modelyard.serve.running import RunningVersion

# The first that fits: an overload is also an endpoint that is not available.
_STATUSES: list[tuple[type[Exception], int, list[Header]]] = [
    (NotFound, 404, []),
    (DataError, 400, []),
    (Overloaded, 429, [AGAIN]),
    (EndpointUnavailable, 503, [AGAIN]),
]


class Lineage:
    """Headers that name model, version, artifact and revision, and request ids that repeat them."""

    def __init__(self, endpoint: str, router: Router) -> None:
        self._endpoint = endpoint
        self._router = router
        # Unique without a lock or a system call per request: this process, then a count.
        self._boot = secrets.token_hex(4)
        self._numbers = count(1)
        self._revision = -1
        self._known: dict[RunningVersion | None, tuple[Headers, str]] = {}

    def stamp(self, version: RunningVersion | None) -> tuple[str, Headers]:
        """A new request id, and the headers of an answer by this version (None: by nobody)."""
        revision = self._router.table.revision.number
        if revision != self._revision:
            self._revision, self._known = revision, {}
        if (known := self._known.get(version)) is None:
            known = self._known[version] = self._prepare(version, revision)
        headers, prefix = known
        request_id = f"{prefix}{next(self._numbers):x}"
        return request_id, [*headers, (b"modelyard-request-id", request_id.encode())]

    def _prepare(self, version: RunningVersion | None, revision: int) -> tuple[Headers, str]:
        headers: Headers = [(b"modelyard-endpoint-revision", b"%d" % revision)]
        if version is None:
            return headers, request_ids.prefix(self._endpoint, revision, None, self._boot)
        headers = [
            (b"modelyard-model", ascii_name(version.model)),
            (b"modelyard-model-version", ascii_name(version.served.version)),
            (b"modelyard-artifact-digest", ascii_name(version.served.artifact.digest)),
            *headers,
        ]
        return headers, request_ids.prefix(
            self._endpoint, revision, (version.model, version.served.version), self._boot
        )


def http_error(failure: Exception, limits: Limits) -> HttpError:
    """The status that tells a client whether to change its request, wait, or give up."""
    if isinstance(failure, HttpError):
        return failure
    if isinstance(failure, TimeoutError):
        return HttpError(504, f"no answer within {limits.request_seconds:g} s")
    for kind, status, headers in _STATUSES:
        if isinstance(failure, kind):
            return HttpError(status, str(failure), headers)
    return HttpError(500, "an internal error; the endpoint's log has it")


@lru_cache(maxsize=1024)
def ascii_name(text: str) -> bytes:
    """A name as a header may carry it."""
    return quote(text).encode()
