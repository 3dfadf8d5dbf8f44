"""Requests as they came: a worker reads them, and writes their answers, itself.

To read a request and to write its answer costs more than all else that the one router does for it, and workers are several.
What it has to know of a request, it finds without reading it.

    a call      requests (u32), bytes of the model's name (u16) and of its version (u16); the two names
    a request   bytes of its id (u16), bytes of its JSON where binary data follow (i32; -1: all of it), bytes of it (u32);
                the id that an answer has where the client gave none; the request
    the answer  seconds to read, compute and write (3 x f64)
    a response  HTTP status (u16), bytes of JSON as above (i32), bytes of it (u32); the response, or a sentence
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

# A longer one is read by the router, which asks for its rows in pieces where they are many.
MOST_BYTES = 2**16
LEAST_OF_JSON = 60  # beside the numbers, of the shortest request

_CALL = struct.Struct("<IHH")
_REQUEST = struct.Struct("<HiI")
_SECONDS = struct.Struct("<3d")
_RESPONSE = struct.Struct("<HiI")
_ALL_JSON = -1


Tell = Callable[["Told", "Answered"], None]


class Unread:
    """One request, in the place of its rows.

    Attributes:
        head_bytes: of its JSON, where binary data follow.
        request_id: of the answer.
        tell: what to do with the answer, given what it came with.
    """

    __slots__ = ("_most_rows", "body", "head_bytes", "nbytes", "request_id", "tell")

    def __init__(self, body: bytes, head_bytes: int | None, request_id: str, width: int, tell: Tell) -> None:
        self.tell = tell
        self.body = body
        self.head_bytes = head_bytes
        self.request_id = request_id
        self.nbytes = len(body)
        # A number takes at least a byte, in JSON a second one to part it from the next.
        numbers = len(body) if head_bytes is not None else (len(body) - LEAST_OF_JSON) // 2
        self._most_rows = max(1, numbers // width)

    def __len__(self) -> int:
        """Rows that it may hold, at most."""
        return self._most_rows


class Told(NamedTuple):
    """What a client is told.

    Attributes:
        status: 200, or 400 with a sentence as the content.
        head_bytes: of the JSON in it, where binary data follow.
    """

    status: int
    content: bytes
    head_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """Requests that one version of a model is asked together."""

    model: str
    version: str
    requests: list[Unread]


@dataclass(frozen=True, slots=True)
class Answered:
    """What each of them is told, in their order, and how long that took."""

    told: list[Told]
    read_seconds: float
    infer_seconds: float
    write_seconds: float


def pack_call(call: Call) -> bytes:
    model, version = call.model.encode(), call.version.encode()
    parts = [_CALL.pack(len(call.requests), len(model), len(version)), model, version]
    for request in call.requests:
        request_id, body = request.request_id.encode(), request.body
        head_bytes = _ALL_JSON if request.head_bytes is None else request.head_bytes
        parts += (_REQUEST.pack(len(request_id), head_bytes, len(body)), request_id, body)
    return b"".join(parts)


def unpack_call(payload: bytes) -> tuple[str, str, Iterator[tuple[str, int | None, bytes]]]:
    """Model, version, and of each request the id, the bytes of JSON where binary data follow, and the request."""
    count, model_bytes, version_bytes = _CALL.unpack_from(payload)
    begin = _CALL.size + model_bytes
    end = begin + version_bytes
    return payload[_CALL.size : begin].decode(), payload[begin:end].decode(), _requests(payload, end, count)


def pack_answered(told: Sequence[Told], seconds: tuple[float, float, float]) -> bytes:
    parts = [_SECONDS.pack(*seconds)]
    for one in told:
        head_bytes = _ALL_JSON if one.head_bytes is None else one.head_bytes
        parts += (_RESPONSE.pack(one.status, head_bytes, len(one.content)), one.content)
    return b"".join(parts)


def unpack_answered(payload: bytes) -> Answered:
    told: list[Told] = []
    at = _SECONDS.size
    while at < len(payload):
        status, head_bytes, length = _RESPONSE.unpack_from(payload, at)
        begin, at = at + _RESPONSE.size, at + _RESPONSE.size + length
        told.append(Told(status, payload[begin:at], None if head_bytes == _ALL_JSON else head_bytes))
    return Answered(told, *_SECONDS.unpack_from(payload))


def _requests(payload: bytes, at: int, count: int) -> Iterator[tuple[str, int | None, bytes]]:
    for _ in range(count):
        id_bytes, head_bytes, length = _REQUEST.unpack_from(payload, at)
        begin = at + _REQUEST.size
        middle, at = begin + id_bytes, begin + id_bytes + length
        yield payload[begin:middle].decode(), None if head_bytes == _ALL_JSON else head_bytes, payload[middle:at]
