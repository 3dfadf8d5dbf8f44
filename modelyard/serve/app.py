"""HTTP: which path does what, what every answer carries, which failure is which status.

A bare ASGI app: on the path of an inference request nothing stands between the server and the router.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from functools import partial
from typing import Any
from urllib.parse import parse_qs, quote

import modelyard
from modelyard.audit import AuditLog
from modelyard.errors import NotFound
from modelyard.serve import openapi, protocol_openai, protocol_v2
from modelyard.serve.answers import CLOSE, Answer, HttpError, as_json, refusal
from modelyard.serve.bodies import Head, decompress, read_head, too_large, too_slow
from modelyard.serve.datatypes import BadRequestError
from modelyard.serve.disclosure import Disclosure
from modelyard.serve.inference import Dialect, Inferences
from modelyard.serve.keys import Guard
from modelyard.serve.limits import Limits
from modelyard.serve.lineage import Lineage
from modelyard.serve.metrics import Metrics, Share
from modelyard.serve.protocol_mlflow import Scoring
from modelyard.serve.protocol_openai import Embeddings
from modelyard.serve.protocol_v2 import OpenInference
from modelyard.serve.reconcile import Reconciler
from modelyard.serve.recording import Recorder
from modelyard.serve.router import Router
from modelyard.serve.status import describe
from modelyard.serve.threads import in_thread
from modelyard.storage import Store

logger = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


OPEN_INFERENCE, SCORING, EMBEDDINGS = OpenInference(), Scoring(), Embeddings()

MAX_REVISION_DIGITS = 12  # as its name in the bucket has

GUARDED = ("/v2/models/", "/invocations", protocol_openai.PREFIX, protocol_openai.EMBEDDINGS)


class EndpointApp:
    """The whole HTTP surface. `is_draining` makes every answer the last one of its connection."""

    def __init__(
        self,
        endpoint: str,
        *,
        router: Router,
        reconciler: Reconciler,
        limits: Limits,
        guard: Guard,
        recorder: Recorder | None = None,
        audit: AuditLog | None = None,
        store: Store | None = None,
        disclosure: Disclosure | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.is_draining = False
        self.limits = limits
        self.guard = guard
        self.audit = audit
        self.store = store
        self._router = router
        self.lineage = Lineage(endpoint, router)
        self.metrics = Metrics(lambda: router.table.revision.number, lambda: self.num_in_flight, self._shares)
        self.metrics.show_meter(guard.meter)
        if recorder:
            self.metrics.show_recorder(recorder)
        self.inferences = Inferences(router, self.metrics, self.lineage, limits, recorder, disclosure or Disclosure())
        self._reconciler = reconciler
        self._pages: dict[str, Callable[[], tuple[int, Any]]] = {
            "/": self._index,
            "/livez": lambda: (200, {"live": True}),
            "/readyz": self._ready,
            "/v2": self._server_metadata,
            "/v2/health/live": lambda: (200, {"live": True}),
            "/v2/health/ready": self._ready,
            "/openapi.json": self._openapi,
            "/ping": self._ready,
            "/health": self._ready,
            "/admin/status": self._status,
        }

    @property
    def num_in_flight(self) -> int:
        """Inference requests without an answer yet."""
        return self.inferences.num_in_flight

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        path: str = scope["path"]
        try:
            if path.startswith(GUARDED):
                self.guard.admit(scope["headers"], "predict")
            if path.startswith("/v2/models/"):
                await self._model(path, scope, receive, send)
            elif path == "/invocations" or path.startswith("/invocations/"):
                await self._invoke(path, scope, receive, send)
            elif path == protocol_openai.EMBEDDINGS:
                await self._embed(scope, receive, send)
            elif path == protocol_openai.PREFIX or path.startswith(f"{protocol_openai.PREFIX}/"):
                await self._list_models(path, scope, send)
            else:
                await self._page(path.rstrip("/") or "/", scope, send)
        except HttpError as error:
            await self._send(send, self._refusal(error))
        except Exception:
            logger.exception("%s %s", scope["method"], path)
            await self._send(send, self._refusal(HttpError(500, "an internal error; the endpoint's log has it")))

    # -- pages ----------------------------------------------------------------------------------------

    async def _page(self, path: str, scope: Scope, send: Send) -> None:
        who = self.guard.admit(scope["headers"], "admin") if path.startswith("/admin/") else ""
        if path == "/admin/notify":
            _allow(scope, "POST")
            self._reconciler.notify(
                _named_revision(scope)
            )  # a look changes nothing, and a way back must not wait for the disk
            if self.audit:
                noting = partial(
                    self.audit.note, "endpoint notified", self.endpoint, who=who or "somebody without a key"
                )
                await in_thread(noting)
            await self._send(send, as_json(202, {"notified": True}))
        elif path == "/metrics":
            _allow(scope, "GET")
            kind = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")
            await self._send(send, Answer(200, self.metrics.page(), [kind]))
        elif path == "/version":
            _allow(scope, "GET")
            await self._send(send, Answer(200, modelyard.__version__.encode(), [(b"content-type", b"text/plain")]))
        elif path in self._pages:
            _allow(scope, "GET")
            await self._send(send, as_json(*self._pages[path]()))
        else:
            raise HttpError(404, f"there is nothing at {path}; / lists what there is")

    def _shares(self) -> Iterator[Share]:
        for model, route in self._router.table.routes.items():
            for version, percent in route.shares().items():
                yield model, version.served.version, percent

    def _index(self) -> tuple[int, Any]:
        models = {name: f"/v2/models/{quote(name, safe='')}" for name in self._router.table.routes}
        links = sorted(
            [*self._pages, "/metrics", "/version", "/invocations", "/v1/models", "/v1/embeddings", "/admin/notify"]
        )
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
        return 200, {
            "name": "modelyard",
            "version": modelyard.__version__,
            "extensions": protocol_v2.EXTENSIONS,
        }

    def _openapi(self) -> tuple[int, Any]:
        served = {
            name: [version.served.version for version in route.in_order()]
            for name, route in self._router.table.routes.items()
        }
        reads_text = any(version.info.reads_text for version in self._router.table.versions())
        return 200, openapi.document(modelyard.__version__, served, reads_text=reads_text)

    def _status(self) -> tuple[int, Any]:
        return 200, describe(self.endpoint, self._reconciler.status(), self._router.table, self._router.trials)

    # -- models ---------------------------------------------------------------------------------------

    async def _model(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        """``/v2/models/{model}[/versions/{version}][/infer|/ready]``."""
        model, *rest = path.removeprefix("/v2/models/").split("/")
        version: str | None = None
        if len(rest) >= 2 and rest[0] == "versions":
            version, rest = rest[1], rest[2:]
        if rest == ["infer"]:
            _allow(scope, "POST")
            await self._infer(OPEN_INFERENCE, model, version, scope, receive, send)
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
            await self._send(send, as_json(200 if ready else 503, {"name": model, "ready": ready}))
            return
        described = running if version else route.stable
        versions = [candidate.served.version for candidate in route.in_order()]
        _, lineage = self.lineage.stamp(described)
        info = self.inferences.disclosure.info(described.info)
        await self._send(send, as_json(200, protocol_v2.model_metadata(model, versions, info), lineage))

    async def _list_models(self, path: str, scope: Scope, send: Send) -> None:
        """``/v1/models[/{model}]``, as OpenAI's clients ask."""
        _allow(scope, "GET")
        table, name = self._router.table, path.removeprefix(protocol_openai.PREFIX).strip("/")
        if not name:
            await self._send(send, as_json(200, protocol_openai.listed(list(table.routes), table.revision)))
        elif name in table.routes:
            _, lineage = self.lineage.stamp(table.routes[name].stable)
            await self._send(send, as_json(200, protocol_openai.described(name, table.revision), lineage))
        else:
            raise HttpError(404, f"this endpoint serves no model {name!r}")

    async def _invoke(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        """``/invocations[/{model}]``: the name may be left out where there is only one."""
        _allow(scope, "POST")
        model = path.removeprefix("/invocations").strip("/")
        served = list(self._router.table.routes)
        if not model and len(served) > 1:
            sentence = f"this endpoint serves several models: post to /invocations/<model>, one of {', '.join(served)}"
            raise HttpError(400, sentence)
        if not model and not served:
            raise HttpError(404, "this endpoint serves no model")
        await self._infer(SCORING, model or served[0], None, scope, receive, send)

    async def _embed(self, scope: Scope, receive: Receive, send: Send) -> None:
        """``/v1/embeddings``: the body names the model."""
        _allow(scope, "POST")
        head = read_head(scope["headers"], self.limits)
        _refuse_upgrade(scope)
        body = await self._body(receive)
        if head.encoding:
            body, head.encoding = decompress(body, self.limits), None
        try:
            model = protocol_openai.model_of(body)
        except BadRequestError as failure:
            raise HttpError(400, str(failure)) from None
        await self._begin(EMBEDDINGS, model, None, head, body, send)

    async def _infer(
        self, dialect: Dialect, model: str, version: str | None, scope: Scope, receive: Receive, send: Send
    ) -> None:
        head = read_head(scope["headers"], self.limits)
        _refuse_upgrade(scope)
        await self._begin(dialect, model, version, head, await self._body(receive), send)

    async def _begin(
        self, dialect: Dialect, model: str, version: str | None, head: Head, body: bytes, send: Send
    ) -> None:
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        def reply(answer: Answer) -> None:
            if not answered.done():  # its connection, and with it this coroutine, may be gone
                answered.set_result(answer)

        self.inferences.begin(dialect, model, version, head, body, reply)
        await self._send(send, await answered)

    async def _body(self, receive: Receive) -> bytes:
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                return await _read_body(receive, self.limits)
        except TimeoutError:
            raise too_slow(self.limits) from None

    # -- answers --------------------------------------------------------------------------------------

    def _refusal(self, error: HttpError) -> Answer:
        _, lineage = self.lineage.stamp(None)
        return refusal(error, lineage)

    async def _send(self, send: Send, answer: Answer) -> None:
        headers = [*answer.headers, (b"content-length", b"%d" % len(answer.content))]
        if self.is_draining and CLOSE not in headers:
            headers.append(CLOSE)
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.content})


def _allow(scope: Scope, method: str) -> None:
    # Of HEAD the server leaves the body out: load balancers and `curl -I` ask so.
    if scope["method"] != method and (scope["method"], method) != ("HEAD", "GET"):
        sentence = f"{scope['method']} is not allowed here, {method} is"
        raise HttpError(405, sentence, [(b"allow", method.encode())])


def _refuse_upgrade(scope: Scope) -> None:
    """What the parser takes for the beginning of another protocol is no body any more. Java's HttpClient asks for h2c
    with each first request over plain HTTP, unless told not to.

    Raises:
        HttpError: 400.
    """
    if wanted := _header(scope, b"upgrade"):
        raise HttpError(
            400,
            f"this endpoint speaks HTTP/1.1, and does not upgrade to {wanted[:40].decode('latin-1')!r}: send the request"
            " without the header Upgrade (Java: HttpClient.newBuilder().version(HTTP_1_1))",
            [CLOSE],
        )


def _header(scope: Scope, name: bytes) -> bytes:
    for key, value in scope["headers"]:
        if key == name:
            return value
    return b""


def _named_revision(scope: Scope) -> int:
    """What ``?revision=`` says, 0 where it says nothing.

    Raises:
        HttpError: 400, it is no number.
    """
    named = parse_qs(scope["query_string"].decode("latin-1")).get("revision", ["0"])[-1]
    if not (named.isascii() and named.isdecimal() and len(named) <= MAX_REVISION_DIGITS):
        raise HttpError(
            400, f"revision {named[:40]!r} is no number; /admin/notify?revision=17 names a revision to look at"
        )
    return int(named)


async def _read_body(receive: Receive, limits: Limits) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > limits.max_body_bytes:
            raise too_large(limits)
    return body
