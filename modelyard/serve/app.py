"""HTTP: which path does what, what every answer carries, which failure is which status.

A bare ASGI app: on the path of an inference request nothing stands between the server and the router.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from functools import lru_cache
from itertools import count
from time import perf_counter
from typing import Any
from urllib.parse import quote

import orjson

import modelyard
from modelyard.errors import DataError, EndpointUnavailable, ModelyardError, NotFound
from modelyard.serve import protocol_v2
from modelyard.serve.batching import Overloaded
from modelyard.serve.limits import Limits
from modelyard.serve.metrics import Metrics
from modelyard.serve.reconcile import Reconciler
from modelyard.serve.router import Router
from modelyard.serve.running import RunningVersion
from modelyard.serve.status import describe

logger = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

_JSON = (b"content-type", b"application/json")
_CLOSE = (b"connection", b"close")
_RETRY_AFTER_SECONDS = b"1"


class HttpError(Exception):
    """An answer other than 200, raised where it is decided."""

    def __init__(self, status: int, sentence: str, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        self.status = status
        self.sentence = sentence
        self.headers = list(headers)
        super().__init__(sentence)


class EndpointApp:
    """The whole HTTP surface. `is_draining` makes every answer the last one of its connection."""

    def __init__(
        self,
        endpoint: str,
        *,
        router: Router,
        reconciler: Reconciler,
        limits: Limits,
        admin_token: str | None,
    ) -> None:
        self.endpoint = endpoint
        self.is_draining = False
        self.num_in_flight = 0
        self.metrics = Metrics(lambda: router.table.revision.number, lambda: self.num_in_flight)
        self._router = router
        self._reconciler = reconciler
        self._limits = limits
        self._admin_token = admin_token.encode() if admin_token else None
        # Unique without a lock or a system call per request: this process, then a count.
        self._boot = secrets.token_hex(4)
        self._numbers = count(1)
        self._pages: dict[str, Callable[[], tuple[int, Any]]] = {
            "/": self._index,
            "/livez": lambda: (200, {"live": True}),
            "/readyz": self._ready,
            "/v2": self._server_metadata,
            "/v2/health/live": lambda: (200, {"live": True}),
            "/v2/health/ready": self._ready,
            "/admin/status": self._status,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        path: str = scope["path"]
        try:
            if path.startswith("/v2/models/"):
                await self._model(path, scope, receive, send)
            else:
                await self._page(path.rstrip("/") or "/", scope, send)
        except HttpError as error:
            await self._refuse(send, error)
        except Exception:
            logger.exception("%s %s", scope["method"], path)
            await self._refuse(send, HttpError(500, "an internal error; the endpoint's log has it"))

    # -- pages ----------------------------------------------------------------------------------------

    async def _page(self, path: str, scope: Scope, send: Send) -> None:
        if path.startswith("/admin/"):
            self._authorize(scope)
        if path == "/admin/notify":
            _allow(scope, "POST")
            self._reconciler.notify()
            await self._send_json(send, 202, {"notified": True})
        elif path == "/metrics":
            _allow(scope, "GET")
            kind = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")
            await self._send(send, 200, self.metrics.page(), [kind])
        elif path in self._pages:
            _allow(scope, "GET")
            await self._send_json(send, *self._pages[path]())
        else:
            raise HttpError(404, f"there is nothing at {path}; / lists what there is")

    def _index(self) -> tuple[int, Any]:
        models = {name: f"/v2/models/{quote(name, safe='')}" for name in self._router.table.routes}
        links = ["/livez", "/readyz", "/metrics", "/v2", "/v2/health/live", "/v2/health/ready", "/admin/status"]
        return 200, {
            "name": "modelyard",
            "endpoint": self.endpoint,
            "revision": self._router.table.revision.number,
            "models": models,
            "links": links,
        }

    def _ready(self) -> tuple[int, Any]:
        reason = "the endpoint is stopping" if self.is_draining else self._reconciler.not_ready_because
        return (503, {"ready": False, "reason": reason}) if reason else (200, {"ready": True})

    def _server_metadata(self) -> tuple[int, Any]:
        return 200, {"name": "modelyard", "version": getattr(modelyard, "__version__", "0"), "extensions": []}

    def _status(self) -> tuple[int, Any]:
        return 200, describe(self.endpoint, self._reconciler.status(), self._router.table)

    def _authorize(self, scope: Scope) -> None:
        if self._admin_token is None:
            return
        given = _header(scope, b"authorization")
        if not hmac.compare_digest(given, b"Bearer " + self._admin_token):
            raise HttpError(401, "the admin routes need the admin token", [(b"www-authenticate", b"Bearer")])

    # -- models ---------------------------------------------------------------------------------------

    async def _model(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        """``/v2/models/{model}[/versions/{version}][/infer|/ready]``."""
        model, *rest = path.removeprefix("/v2/models/").split("/")
        version: str | None = None
        if len(rest) >= 2 and rest[0] == "versions":
            version, rest = rest[1], rest[2:]
        if rest == ["infer"]:
            _allow(scope, "POST")
            await self._infer(model, version, scope, receive, send)
        elif rest in ([], ["ready"]):
            _allow(scope, "GET")
            await self._describe_model(model, version, bool(rest), send)
        else:
            raise HttpError(404, f"there is nothing at {path}")

    async def _describe_model(self, model: str, version: str | None, only_ready: bool, send: Send) -> None:
        try:
            running = self._router.pick(model, version)
        except NotFound as failure:
            raise HttpError(404, str(failure)) from None
        route = self._router.table.routes[model]
        if only_ready:
            asked = [running] if version else list(route.in_order())
            ready = any(candidate.is_available for candidate in asked)
            await self._send_json(send, 200 if ready else 503, {"name": model, "ready": ready})
            return
        described = running if version else route.stable
        versions = [candidate.served.version for candidate in route.in_order()]
        headers = self._lineage(described, self._request_id(described.served.version))
        await self._send_json(send, 200, protocol_v2.model_metadata(model, versions, described.info), headers)

    async def _infer(self, model: str, version: str | None, scope: Scope, receive: Receive, send: Send) -> None:
        body = await self._body(scope, receive)
        started = perf_counter()
        self.num_in_flight += 1
        picked: RunningVersion | None = None
        try:
            # Draw, check and ask in one turn of the event loop: a switch of the table cannot come in between.
            picked = self._router.pick(model, version)
            request = protocol_v2.parse_infer(body)
            protocol_v2.check_fits(request, model, picked.info)
            async with asyncio.timeout(self._limits.request_seconds):
                picked, answers = await self._router.infer(picked, request.rows, pinned=version is not None)
            number = picked.served.version
            request_id = self._request_id(number)
            content = protocol_v2.format_answer(
                answers,
                picked.info,
                model=model,
                version=number,
                request_id=request.id or request_id,
                wanted=request.outputs,
            )
            self.metrics.count(model, number, 200, perf_counter() - started)
            await self._send(send, 200, content, [_JSON, *self._lineage(picked, request_id)])
        except (ModelyardError, TimeoutError) as failure:
            error = _http_error(failure, self._limits)
            number = picked.served.version if picked else ""
            self.metrics.count(model if picked else "", number, error.status, perf_counter() - started)
            request_id = self._request_id(number or "none")
            lineage = self._lineage(picked, request_id) if picked else self._position(request_id)
            await self._refuse(send, error, lineage)
        finally:
            self.num_in_flight -= 1

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        kind = _header(scope, b"content-type").partition(b";")[0].strip().lower()
        if kind not in (b"", b"application/json"):
            raise HttpError(415, f"content type {kind.decode('latin-1')!r} is not application/json")
        if _header(scope, b"content-encoding") not in (b"", b"identity"):
            raise HttpError(415, "compressed bodies are not supported")
        limit = self._limits.max_body_bytes
        length = _header(scope, b"content-length")
        if length.isdigit() and int(length) > limit:
            raise _too_large(limit)
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                return await _read_body(receive, limit)
        except TimeoutError:
            raise HttpError(408, f"the body did not arrive in {self._limits.body_seconds:g} s", [_CLOSE]) from None

    # -- what every answer carries --------------------------------------------------------------------

    def _request_id(self, version: str) -> str:
        number = self._router.table.revision.number
        return f"{self.endpoint}-{number}-{_ascii(version).decode()}-{self._boot}{next(self._numbers):x}"

    def _lineage(self, version: RunningVersion, request_id: str) -> Headers:
        return [
            (b"modelyard-model", _ascii(version.model)),
            (b"modelyard-model-version", _ascii(version.served.version)),
            (b"modelyard-artifact-digest", _ascii(version.served.artifact.digest)),
            *self._position(request_id),
        ]

    def _position(self, request_id: str) -> Headers:
        return [
            (b"modelyard-endpoint-revision", b"%d" % self._router.table.revision.number),
            (b"modelyard-request-id", request_id.encode()),
        ]

    async def _refuse(self, send: Send, error: HttpError, headers: Headers | None = None) -> None:
        lineage = headers if headers is not None else self._position(self._request_id("none"))
        await self._send_json(send, error.status, {"error": error.sentence}, [*error.headers, *lineage])

    async def _send_json(self, send: Send, status: int, document: Any, headers: Headers | None = None) -> None:
        await self._send(send, status, orjson.dumps(document), [_JSON, *(headers or [])])

    async def _send(self, send: Send, status: int, content: bytes, headers: Headers) -> None:
        headers.append((b"content-length", b"%d" % len(content)))
        if self.is_draining and _CLOSE not in headers:
            headers.append(_CLOSE)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content})


def _http_error(failure: Exception, limits: Limits) -> HttpError:
    """The status that tells a client whether to change its request, wait, or give up."""
    sentence = str(failure)
    if isinstance(failure, NotFound):
        return HttpError(404, sentence)
    if isinstance(failure, DataError):
        return HttpError(400, sentence)
    if isinstance(failure, TimeoutError):
        return HttpError(504, f"no answer within {limits.request_seconds:g} s")
    again = [(b"retry-after", _RETRY_AFTER_SECONDS)]
    if isinstance(failure, Overloaded):
        return HttpError(429, sentence, again)
    if isinstance(failure, EndpointUnavailable):
        return HttpError(503, sentence, again)
    return HttpError(500, sentence)


def _too_large(limit: int) -> HttpError:
    return HttpError(413, f"the body is larger than {limit} bytes", [_CLOSE])


@lru_cache(maxsize=1024)
def _ascii(text: str) -> bytes:
    """A name as a header may carry it."""
    return quote(text).encode()


def _allow(scope: Scope, method: str) -> None:
    if scope["method"] != method:
        sentence = f"{scope['method']} is not allowed here, {method} is"
        raise HttpError(405, sentence, [(b"allow", method.encode())])


def _header(scope: Scope, name: bytes) -> bytes:
    for key, value in scope["headers"]:
        if key == name:
            return value
    return b""


async def _read_body(receive: Receive, limit: int) -> bytes:
    message = await receive()
    body: bytes = message.get("body", b"")
    while message.get("more_body"):
        if len(body) > limit:
            raise _too_large(limit)
        message = await receive()
        body += message.get("body", b"")
    if len(body) > limit:
        raise _too_large(limit)
    return body
