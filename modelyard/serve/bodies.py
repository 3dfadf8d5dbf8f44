"""Bodies on their way in and out: type, encoding, size. Nothing of what they say."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from modelyard.serve.answers import CLOSE, Answer, Header, HttpError
from modelyard.serve.limits import Limits

BINARY: Header = (b"content-type", b"application/octet-stream")
WORTH_COMPRESSING_BYTES = 1024
COMPRESSION_LEVEL = 1  # numbers gain little from more, and the event loop waits for it
_EITHER_ENCODING = 32 + zlib.MAX_WBITS  # gzip or zlib, by their own head

Encoding = Literal["gzip", "deflate"]


@dataclass(slots=True)
class Head:
    """What the headers of an inference request say about its body and its answer.

    Attributes:
        kind: content type of the body, without parameters.
        head_bytes: length of the JSON before binary data, in the decompressed body.
        encoding: how the body is compressed.
        accepts: how the answer may be compressed.
        key: of whom it comes; a rollout keeps one's requests on one version.
    """

    kind: bytes = b"application/json"
    head_bytes: int | None = None
    encoding: Encoding | None = None
    accepts: Encoding | None = None
    key: bytes | None = None


def read_head(headers: Iterable[Header], limits: Limits) -> Head:
    """Judge an inference request before its body is read.

    Raises:
        HttpError: 400 (numbers that are none), 413 or 415 (encoding).
    """
    head = Head()
    for name, value in headers:
        if name == b"content-type":
            head.kind = value.partition(b";")[0].strip().lower()
        elif name == b"content-encoding":
            head.encoding = _encoding(value)
        elif name == b"accept-encoding":
            head.accepts = _accepted(value)
        elif name == b"inference-header-content-length":
            head.head_bytes = _count(value)
        elif name == b"modelyard-key":
            head.key = value
        elif name == b"content-length" and value.isdigit() and int(value) > limits.max_body_bytes:
            raise too_large(limits)
    return head


def refuse_kind(head: Head, *admitted: bytes) -> None:
    """Compare the content type with those that a protocol reads.

    Raises:
        HttpError: 415.
    """
    if head.kind not in admitted:
        names = " or ".join(kind.decode() for kind in admitted)
        raise HttpError(415, f"content type {head.kind.decode('latin-1')!r} is not {names}")


def decompress(body: bytes, limits: Limits) -> bytes:
    """A gzip or zlib body, never more than a plain one could be.

    Raises:
        HttpError: 413 for a bomb, 400 for bytes that are not what the header says.
    """
    inflating = zlib.decompressobj(_EITHER_ENCODING)
    try:
        plain = inflating.decompress(body, limits.max_body_bytes + 1)
    except zlib.error as failure:
        raise HttpError(400, f"the body cannot be decompressed: {failure}") from None
    if len(plain) > limits.max_body_bytes:
        raise HttpError(413, f"the body decompresses to more than {limits.max_body_bytes} bytes")
    if not inflating.eof or inflating.unused_data:
        raise HttpError(400, "the compressed body ends early, or something follows it")
    return plain


def compress(answer: Answer, accepts: Encoding | None) -> None:
    """Compress an answer in place where its client can read that and it is worth it."""
    if accepts is None or len(answer.content) < WORTH_COMPRESSING_BYTES:
        return
    shorten = gzip.compress if accepts == "gzip" else zlib.compress
    answer.content = shorten(answer.content, COMPRESSION_LEVEL)
    answer.headers.append((b"content-encoding", accepts.encode()))


def too_large(limits: Limits) -> HttpError:
    return HttpError(413, f"the body is larger than {limits.max_body_bytes} bytes", [CLOSE])


def too_slow(limits: Limits) -> HttpError:
    return HttpError(408, f"the body did not arrive in {limits.body_seconds:g} s", [CLOSE])


def _encoding(value: bytes) -> Encoding | None:
    match value.strip().lower():
        case b"" | b"identity":
            return None
        case b"gzip" | b"x-gzip":
            return "gzip"
        case b"deflate":
            return "deflate"
    raise HttpError(415, f"content encoding {value.decode('latin-1')!r} is not gzip, deflate or identity")


@lru_cache(maxsize=256)
def _accepted(value: bytes) -> Encoding | None:
    """The first of ours in an Accept-Encoding that is not refused with a weight of 0."""
    offered = set()
    for part in value.lower().split(b","):
        name, _, parameters = part.partition(b";")
        weight = parameters.replace(b" ", b"").removeprefix(b"q=")
        if not parameters or weight.strip(b"0."):
            offered.add(name.strip())
    if b"gzip" in offered:
        return "gzip"
    return "deflate" if b"deflate" in offered else None


def _count(value: bytes) -> int:
    if not value.isdigit() or len(value) > 18:
        raise HttpError(400, "Inference-Header-Content-Length must be a number of bytes")
    return int(value)
