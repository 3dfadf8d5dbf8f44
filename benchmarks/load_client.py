"""The load generator for machines without `wrk`.

    python -m benchmarks.load_client <url> <file of the body> <headers as JSON> <connections> <seconds>

Prints a `Load` as JSON. It reads answers only so far as to know where they end.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import uvloop

from benchmarks.load import Load

ANSWER_SECONDS = 10


class Tally:
    """What all connections of one run add up to; latencies are in seconds."""

    def __init__(self) -> None:
        self.latencies: list[float] = []
        self.failed = 0

    def load(self, seconds: float) -> Load:
        ordered = sorted(self.latencies) or [0.0]
        return Load(
            answered=len(self.latencies),
            seconds=seconds,
            failed=self.failed,
            p50_ms=ordered[len(ordered) // 2] * 1000,
            p99_ms=ordered[len(ordered) * 99 // 100] * 1000,
        )


class Connection(asyncio.Protocol):
    """Sends, waits for the whole answer, sends again, until the time is over."""

    def __init__(self, request: bytes, end: float, tally: Tally) -> None:
        self.done = asyncio.get_running_loop().create_future()
        self._request = request
        self._end = end
        self._tally = tally
        self._answer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's shares no base class with asyncio's
        self._send()

    def data_received(self, data: bytes) -> None:
        self._answer += data
        head, separator, body = self._answer.partition(b"\r\n\r\n")
        if not separator or len(body) < _content_length(head):
            return
        now = time.perf_counter()
        self._tally.latencies.append(now - self._sent)
        self._tally.failed += not head.startswith(b"HTTP/1.1 200")
        if now < self._end:
            self._send()
        else:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 (asyncio's name)
        self._tally.failed += time.perf_counter() < self._end
        if not self.done.done():
            self.done.set_result(None)

    def _send(self) -> None:
        self._answer = b""
        self._sent = time.perf_counter()
        self._transport.write(self._request)


async def fire(url: str, body: bytes, headers: Mapping[str, str], connections: int, seconds: float) -> Load:
    """Keep that many connections busy for so long."""
    parts = urlsplit(url)
    assert parts.hostname
    assert parts.port
    context = None
    if parts.scheme == "https":  # as wrk, which asks for no authority
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    given = {"Host": parts.netloc, **headers, "Content-Length": str(len(body))}
    lines = [f"POST {parts.path} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items())]
    head = "\r\n".join([*lines, "", ""])
    tally, began = Tally(), time.perf_counter()
    loop = asyncio.get_running_loop()
    clients = []
    for _ in range(connections):
        client = Connection(head.encode() + body, began + seconds, tally)
        await loop.create_connection(lambda client=client: client, parts.hostname, parts.port, ssl=context)
        clients.append(client.done)
    async with asyncio.timeout(seconds + ANSWER_SECONDS):
        await asyncio.gather(*clients)
    return tally.load(time.perf_counter() - began)


def _content_length(head: bytes) -> int:
    """Every server measured here says how long its answer is."""
    length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
    return int(length) if length else sys.maxsize


if __name__ == "__main__":
    address, path, headers, connections, seconds = sys.argv[1:]
    load = uvloop.run(fire(address, Path(path).read_bytes(), json.loads(headers), int(connections), float(seconds)))
    print(load.as_json())
