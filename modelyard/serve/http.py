"""HTTP connections: uvicorn's protocol with a shorter way for inference requests.

uvicorn parses, keeps connections and their order; pages go through ASGI as with any other app. An inference request
needs none of what ASGI costs (a task, an event, two writes an answer): its body is handed to `Inferences` when it is
whole, and the answer is one write. The base class asks little of what it calls a cycle, and `Exchange` is one.
"""

from __future__ import annotations

import asyncio
from functools import lru_cache
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from modelyard.serve.answers import AGAIN, CLOSE, Answer, Header, HttpError, refusal
from modelyard.serve.app import OPEN_INFERENCE, EndpointApp
from modelyard.serve.bodies import Head, read_head, too_large, too_slow

LONGEST_URL_BYTES = 512  # of the short way, which remembers addresses
MOST_HEAD_BYTES = 2**16  # about: what arrived with its first byte is not counted


class Exchange:
    """One inference request and its answer."""

    __slots__ = (
        "_app", "_chunks", "_protocol", "_target", "_timer", "body", "disconnected", "head", "headers", "keep_alive",
        "message_event", "more_body", "num_bytes", "response_complete",
    )  # fmt: skip

    def __init__(self, protocol: HttpProtocol, target: tuple[str, str | None], *, keep_alive: bool) -> None:
        self.head = Head()
        self.headers: list[Header] = protocol.headers
        self.keep_alive = keep_alive
        self.response_complete = False
        self.more_body = True
        self.num_bytes = 0
        # Read or set by uvicorn's protocol; nothing here waits for them.
        self.disconnected = False
        self.message_event = _NOBODY_WAITS
        self.body = b""
        self._app = protocol.endpoint
        self._protocol = protocol
        self._target = target
        self._chunks: list[bytes] = []
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """The head is here."""
        try:
            self._app.guard.admit(self.headers, "predict")
            self.head = read_head(self.headers, self._app.limits)
        except HttpError as error:
            self._refuse(error)

    def take(self, chunk: bytes) -> None:
        """A part of the body is here."""
        if self.response_complete:
            return
        self._chunks.append(chunk)
        self.num_bytes += len(chunk)
        if self.num_bytes > self._app.limits.max_body_bytes:
            self._chunks.clear()
            self._refuse(too_large(self._app.limits))

    def end(self) -> None:
        """The body is whole."""
        self.more_body = False
        if self._timer:
            self._timer.cancel()
        if self.response_complete:
            return
        body = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._app.inferences.begin(OPEN_INFERENCE, *self._target, self.head, body, self.reply)

    def expect_more(self) -> None:
        """What arrived so far ends within the body: the rest has a bound."""
        if self._timer is None and not self.response_complete:
            limits = self._app.limits
            self._timer = self._protocol.loop.call_later(limits.body_seconds, self._refuse, too_slow(limits))

    def reply(self, answer: Answer) -> None:
        """Write the answer, as one piece."""
        if self.response_complete:
            return
        self.response_complete = True
        transport = self._protocol.transport
        if transport.is_closing():
            return
        closes = CLOSE in answer.headers
        if not closes and (self._app.is_draining or not self.keep_alive):
            closes = True
            answer.headers.append(CLOSE)
        transport.write(as_bytes(answer))
        if closes:
            transport.close()
        self._protocol.on_response_complete()

    def _refuse(self, error: HttpError) -> None:
        _, lineage = self._app.lineage.stamp(None)
        self.reply(refusal(error, lineage))


class HttpProtocol(HttpToolsProtocol):
    """One connection of the endpoint."""

    cycle: Any  # uvicorn's own, or an Exchange
    parser: Any  # None once the connection is lost, when nothing is called any more

    def __init__(self, *, endpoint: EndpointApp, **given: Any) -> None:
        super().__init__(**given)
        self.endpoint = endpoint
        self._reads_head = False
        self._message_bytes = 0  # of a message that is not whole yet
        self._ends_at: float | None = None  # while a request is being answered its own bounds hold
        self._unread_since: float | None = None  # more waits to be sent than may wait

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast("asyncio.Transport", transport))
        limits = self.endpoint.limits
        if len(self.connections) > limits.max_connections:
            sentence = f"{limits.max_connections} connections are open already"
            self._end(HttpError(503, sentence, [AGAIN, CLOSE]))
        else:
            self._ends_at = self.loop.time() + limits.keep_alive_seconds

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._reads_head, self._message_bytes = True, 0
        self._ends_at = self.loop.time() + self.endpoint.limits.head_seconds

    def on_headers_complete(self) -> None:
        self._reads_head, self._ends_at = False, None
        target = self._inference_target()
        if target is None:
            super().on_headers_complete()
            return
        self.cycle = Exchange(self, target, keep_alive=self.parser.should_keep_alive())
        self.cycle.begin()

    def on_body(self, body: bytes) -> None:
        if type(self.cycle) is Exchange:
            self.cycle.take(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if type(self.cycle) is Exchange:
            self.cycle.end()
        else:
            super().on_message_complete()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():  # it was told to go
            return
        super().data_received(data)
        cycle = self.cycle
        if self._reads_head:
            self._bound(len(data), MOST_HEAD_BYTES, "the head of the request")
        elif cycle is not None and cycle.more_body:
            # Chunks and what follows the last of them are no body, but are kept or take time.
            self._bound(len(data), 2 * self.endpoint.limits.max_body_bytes, "the request")
            if type(cycle) is Exchange:
                cycle.expect_more()

    def send_400_response(self, msg: str) -> None:
        """What the parser does not take for HTTP (uvicorn's name)."""
        self._end(HttpError(400, msg, [CLOSE]))

    def _bound(self, num_bytes: int, most: int, what: str) -> None:
        self._message_bytes += num_bytes
        if self._message_bytes > most and not self.transport.is_closing():
            status = 431 if self._reads_head else 413
            self._end(HttpError(status, f"{what} is larger than {most} bytes", [CLOSE]))

    def on_response_complete(self) -> None:
        """As the base class, but that a moment is noted where it sets a timer for each answer."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self._unread_since is None:
            self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif not self._reads_head:
            self._ends_at = self.loop.time() + self.endpoint.limits.keep_alive_seconds

    def pause_writing(self) -> None:
        """Its client does not read: nothing more is read of it either, so that no answers pile up."""
        super().pause_writing()
        self._unread_since = self.loop.time()
        self.flow.pause_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unread_since = None
        if not self.pipeline:
            self.flow.resume_reading()

    def expire_by(self, now: float) -> None:
        """End a connection that kept silent between requests, within the head of one, or did not read its answers, for
        longer than it may."""
        if self._unread_since is not None and now >= self._unread_since + self.endpoint.limits.keep_alive_seconds:
            self.transport.abort()  # to close would wait for the client
            return
        if self._ends_at is None or now < self._ends_at or self.transport.is_closing():
            return
        if self._reads_head:
            seconds = self.endpoint.limits.head_seconds
            self._end(HttpError(408, f"the head of the request did not arrive in {seconds:g} s", [CLOSE]))
        else:
            self.transport.close()

    def _end(self, error: HttpError) -> None:
        """Say why, and hang up; nothing is being answered."""
        _, lineage = self.endpoint.lineage.stamp(None)
        self.transport.write(as_bytes(refusal(error, lineage)))
        self.transport.close()

    def _inference_target(self) -> tuple[str, str | None] | None:
        """(model, version) of a plain inference request whose turn it is; anything unusual goes the long way."""
        earlier = self.cycle
        if earlier is not None and not earlier.response_complete:
            return None
        parser = self.parser
        if parser.get_method() != b"POST" or self.expect_100_continue or parser.should_upgrade():
            return None
        if parser.get_http_version() != "1.1" or len(self.url) > LONGEST_URL_BYTES:
            return None
        return _target(self.url)


def as_bytes(answer: Answer) -> bytes:
    """A whole response."""
    lines, content = b"\r\n".join(map(b": ".join, answer.headers)), answer.content
    return b"%b%b\r\ncontent-length: %d\r\n\r\n%b" % (STATUS_LINE[answer.status], lines, len(content), content)


class _Nobody:
    def set(self) -> None:
        """uvicorn's cycles wake the task that reads their body; an exchange has none."""


_NOBODY_WAITS = _Nobody()


@lru_cache(maxsize=1024)
def _target(url: bytes) -> tuple[str, str | None] | None:
    match url.split(b"/"):
        case [b"", b"v2", b"models", model, b"infer"]:
            names = [model]
        case [b"", b"v2", b"models", model, b"versions", version, b"infer"]:
            names = [model, version]
        case _:
            return None
    if not all(name and name.isascii() and not set(name) & set(b"%?#;") for name in names):
        return None
    texts = [name.decode() for name in names]
    return texts[0], texts[1] if len(texts) == 2 else None
