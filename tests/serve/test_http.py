"""Connections as bytes: order, pieces, patience. The server runs in this process, its worker and store are real."""

from __future__ import annotations

import asyncio
import json
import os
import resource
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
from tests.serve.packages import publish_version, roll_out

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


async def test_a_slow_head_is_408_and_silence_is_ended(serving: Any):
    """A head that stops coming gets a 408; a connection that says nothing, before or between requests, is closed."""
    async with serving(head_seconds=0.4, keep_alive_seconds=1.0) as (_, port):
        slow, slow_writer = await asyncio.open_connection("127.0.0.1", port)
        slow_writer.write(b"POST /v2/models/digits/infer HTTP/1.1\r\nHost:")
        silent, silent_writer = await asyncio.open_connection("127.0.0.1", port)
        used, used_writer = await asyncio.open_connection("127.0.0.1", port)
        used_writer.write(request())
        assert (await read_answer(used))[0] == 200
        status, headers, content = await read_answer(slow)
        async with asyncio.timeout(15):
            assert [await ended.read() for ended in (slow, silent, used)] == [b"", b"", b""]
        for writer in (slow_writer, silent_writer, used_writer):
            writer.close()
    assert (status, headers["connection"]) == (408, "close")
    assert "head of the request" in json.loads(content)["error"]


async def test_a_request_in_flight_is_not_silence(serving: Any):
    """While the worker takes its time, the connection stays, however short its patience with silence."""
    async with serving(keep_alive_seconds=0.2, head_seconds=0.2) as (inside, port):
        os.kill(inside.worker_pid, signal.SIGSTOP)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request())
        await asyncio.sleep(1.2)
        os.kill(inside.worker_pid, signal.SIGCONT)
        assert (await read_answer(reader))[0] == 200
        writer.close()


async def test_who_does_not_read_is_not_read_from(serving: Any):
    """Answers that nobody takes do not pile up: the server stops reading there, answers the rest when the client reads
    again, and ends the connection of one who never does. Neighbours notice nothing."""
    rows = [[1.0, 2.0, 3.0, 4.0]] * 400
    tensor = {"name": "features", "datatype": "FP64", "shape": [400, 4], "data": rows}
    asked = request(PATH, json.dumps({"inputs": [tensor]}).encode())

    def answered(inside: Inside) -> float:
        labels = {"model": "digits", "version": "1", "code": "200"}
        return inside.app.metrics.registry.get_sample_value("modelyard_requests_total", labels) or 0.0

    async def until_refused(writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.05)

    async def pile_up(inside: Inside, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, int]:
        """Ask, one request after the other, until nothing is answered any more; how many were sent."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**12)
        for number in range(1, 1_000):
            writer.write(asked)
            before = answered(inside)
            for _ in range(100):
                await asyncio.sleep(0.001)
                if answered(inside) > before:
                    break
            else:
                return reader, writer, number
        raise AssertionError("the server reads on")

    async with serving(keep_alive_seconds=3.0) as (inside, port):
        reader, writer, sent = await pile_up(inside, port)
        assert [(await read_answer(reader))[0] for _ in range(sent)] == [200] * sent
        writer.close()
        _, writer, _ = await pile_up(inside, port)
        neighbour, other = await asyncio.open_connection("127.0.0.1", port)
        other.write(request())
        assert (await read_answer(neighbour))[0] == 200
        other.close()
        with pytest.raises(ConnectionError):
            await asyncio.wait_for(until_refused(writer), 10)


async def test_one_connection_too_many_is_503(serving: Any):
    """Those that are open stay and are answered; the next one is told to come back."""
    async with serving(max_connections=2) as (_, port):
        kept = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        for reader, writer in kept:  # both are known to the server once they were answered
            writer.write(request())
            assert (await read_answer(reader))[0] == 200
        reader, refused = await asyncio.open_connection("127.0.0.1", port)
        status, headers, content = await read_answer(reader)
        assert await reader.read() == b""
        kept[0][1].write(request())
        assert (await read_answer(kept[0][0]))[0] == 200
        for _, writer in [*kept, (reader, refused)]:
            writer.close()
    assert (status, headers["retry-after"]) == (503, "1")
    assert "2 connections" in json.loads(content)["error"]


@pytest.mark.soak
async def test_thousands_of_idle_connections(store: Store, version: ServedVersion, new_endpoint: Any):
    """10,000 connections that say nothing and 500 that stop within their head: a neighbour's requests are all answered,
    the slow ones get their 408, and the router's memory grows by less than 20 KB for each."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    process = new_endpoint()
    roll_out(store, process.name, version)
    process.start().reach(1)
    before = resident_bytes(process.process.pid)
    idle = [await asyncio.open_connection("127.0.0.1", process.port) for _ in range(10_000)]
    slow = [await asyncio.open_connection("127.0.0.1", process.port) for _ in range(500)]
    for _, writer in slow:
        writer.write(b"GET / HTTP/1.1\r\nHost: ")
    reader, writer = await asyncio.open_connection("127.0.0.1", process.port)
    for _ in range(2_000):
        writer.write(request())
        assert (await read_answer(reader))[0] == 200
    grown = resident_bytes(process.process.pid) - before
    statuses = {(await asyncio.wait_for(one.read(), 30))[:12] for one, _ in slow}
    assert statuses == {b"HTTP/1.1 408"}
    assert grown < 20_000 * 10_500
    writer.write(request())
    assert (await read_answer(reader))[0] == 200
    for _, one in [*idle, *slow, (reader, writer)]:
        one.close()


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
