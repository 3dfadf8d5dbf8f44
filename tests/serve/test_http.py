"""Connections as bytes: order, pieces, patience. The server runs in this process, its worker and store are real."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from modelyard.revisions import ServedVersion
from modelyard.serve.app import EndpointApp
from modelyard.settings import Settings
from modelyard.storage import Store
from tests.serve.inprocess import Inside, endpoint
from tests.serve.load import BODY
from tests.serve.packages import publish_version

CONTENT = json.dumps(BODY).encode()
PATH = b"/v2/models/digits/infer"


@pytest.fixture(scope="module")
def version(store: Store) -> ServedVersion:
    return publish_version(store, "1")


@pytest.fixture
def serving(settings: Settings, store: Store, version: ServedVersion, tmp_path: Path):
    """Serves version 1 on a real port, with bounds of the test's own."""

    @asynccontextmanager
    async def start(**bounds: Any) -> AsyncGenerator[tuple[Inside, int]]:
        async with endpoint(settings, store, version, tmp_path, **bounds) as inside, inside.listening() as port:
            yield inside, port

    return start


def request(path: bytes = PATH, content: bytes = CONTENT, *more: bytes, method: bytes = b"POST") -> bytes:
    head = [method + b" " + path + b" HTTP/1.1", b"Host: x", b"Content-Length: %d" % len(content), *more]
    return b"\r\n".join([*head, b"", content])


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    async with asyncio.timeout(15):
        head = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:-1])}
        return int(head[0].split()[1]), headers, await reader.readexactly(int(headers["content-length"]))


async def test_pipelined_requests_are_answered_in_order(serving: Any):
    """Several requests in one packet, of both ways through the server, get their own answers, one after the other."""
    async with serving() as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        numbered = [json.dumps(BODY | {"id": f"n{number}"}).encode() for number in range(3)]
        writer.write(
            request(content=numbered[0])
            + request(b"/livez", b"", method=b"GET")
            + request(content=numbered[1])
            + request(content=numbered[2])
        )
        answers = [json.loads((await read_answer(reader))[2]) for _ in range(4)]
        writer.close()
    assert [answer.get("id", "page") for answer in answers] == ["n0", "page", "n1", "n2"]


async def test_a_request_may_come_in_pieces(serving: Any):
    """Bytes that arrive one by one make the same request."""
    async with serving() as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for byte in request():
            writer.write(bytes([byte]))
            await asyncio.sleep(0)
        status, headers, _ = await read_answer(reader)
        writer.close()
    assert (status, headers["modelyard-model-version"]) == (200, "1")


@pytest.mark.parametrize(
    "sent",
    [
        request(PATH, CONTENT, b"Expect: 100-continue"),
        request(b"/v2/models/d%69gits/infer"),
        request(PATH + b"?x=1"),
        request().replace(b"HTTP/1.1", b"HTTP/1.0", 1),
    ],
    ids=["expect", "percent", "query", "http-1.0"],
)
async def test_unusual_requests_are_answered_alike(serving: Any, sent: bytes):
    """What the short way leaves out takes the long one, with the same answer."""
    async with serving() as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        if b"Expect" in sent:
            assert b" 100 " in await reader.readuntil(b"\r\n\r\n")
        status, headers, content = await read_answer(reader)
        writer.close()
    assert (status, headers["modelyard-model"], json.loads(content)["model_version"]) == (200, "digits", "1")


async def test_a_slow_body_is_408_and_ends_the_connection(serving: Any):
    """A body that stops coming is given up; a neighbour's request meanwhile is answered."""
    async with serving(body_seconds=0.3) as (_, port):
        slow, slow_writer = await asyncio.open_connection("127.0.0.1", port)
        slow_writer.write(request()[:-10])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request())
        assert (await read_answer(reader))[0] == 200
        status, headers, content = await read_answer(slow)
        assert await slow.read() == b""
        writer.close()
        slow_writer.close()
    assert (status, headers["connection"]) == (408, "close")
    assert "0.3 s" in json.loads(content)["error"]


async def test_a_body_refused_by_its_length_is_not_read(serving: Any):
    """413 comes after the head, before a byte of the body, and ends the connection."""
    async with serving(max_body_bytes=1000) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request(PATH, b"").replace(b"Content-Length: 0", b"Content-Length: 1001"))
        status, headers, _ = await read_answer(reader)
        assert await reader.read() == b""
        writer.close()
    assert (status, headers["connection"]) == (413, "close")


async def test_a_client_that_leaves_costs_nobody_else(serving: Any):
    """Whoever hangs up before the answer is forgotten; others in the same batch get theirs."""
    async with serving() as (inside, port):
        os.kill(inside.worker_pid, signal.SIGSTOP)
        _, leaver = await asyncio.open_connection("127.0.0.1", port)
        leaver.write(request())
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request())
        async with asyncio.timeout(10):
            while inside.app.num_in_flight < 2:  # noqa: ASYNC110 (nothing announces a count)
                await asyncio.sleep(0.01)
        leaver.close()
        await leaver.wait_closed()
        os.kill(inside.worker_pid, signal.SIGCONT)
        assert (await read_answer(reader))[0] == 200
        writer.close()
        assert inside.app.num_in_flight == 0


async def test_a_stopping_endpoint_says_so(serving: Any):
    """While it drains, each answer is the last one of its connection."""
    async with serving() as (inside, port):
        app: EndpointApp = inside.app
        app.is_draining = True
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request() + request())
        status, headers, _ = await read_answer(reader)
        assert await reader.read() == b""
        writer.close()
    assert (status, headers["connection"]) == (200, "close")


async def test_bytes_that_are_not_http_are_400(serving: Any):
    """Garbage ends its own connection."""
    async with serving() as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"\x16\x03\x01 not http\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
        writer.close()
