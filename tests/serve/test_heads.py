"""What a client may send before its body, and how it is told that it is no HTTP."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from modelyard.settings import Settings
from modelyard.storage import Store
from tests.serve.inprocess import endpoint
from tests.serve.packages import publish_version


async def test_a_head_is_bounded(settings: Settings, store: Store, tmp_path: Path):
    """A client without a key cannot fill the router's memory by headers that never end: after 64 KiB or so it is told 431."""
    version = publish_version(store, "1")
    async with endpoint(settings, store, version, tmp_path) as inside, inside.listening() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: x\r\n")
        try:
            for number in range(8):
                writer.write(b"X-%d: %s\r\n" % (number, b"y" * 2**20))
                await asyncio.wait_for(writer.drain(), timeout=5)
            writer.write(b"\r\n")
            status = (await asyncio.wait_for(reader.readline(), timeout=5)).split()[1:2]
        except (ConnectionError, TimeoutError):
            status = [b"431"]
        finally:
            writer.close()
        assert status == [b"431"]


async def test_what_is_no_http_is_refused_as_anything_else(settings: Settings, store: Store, tmp_path: Path):
    """Two lengths, a verb in small letters, a TLS handshake: 400 as JSON with a sentence, as the page on the endpoint says."""
    version = publish_version(store, "1")
    async with endpoint(settings, store, version, tmp_path) as inside, inside.listening() as port:
        for sent in (
            b"post / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            head, _, body = (await asyncio.wait_for(reader.read(), timeout=5)).partition(b"\r\n\r\n")
            writer.close()
            assert head.split()[1] == b"400"
            assert json.loads(body)["error"]


async def test_what_follows_a_body_is_bounded(settings: Settings, store: Store, tmp_path: Path):
    """Behind the last chunk lines may follow, which are no body: a client that does not end them is told 413."""
    version = publish_version(store, "1")
    async with endpoint(settings, store, version, tmp_path, max_body_bytes=2**16) as inside, inside.listening() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n"
        )
        status: list[bytes] = []
        try:
            for number in range(40):
                writer.write(b"X-%d: %s\r\n" % (number, b"y" * 2**14))
                await asyncio.wait_for(writer.drain(), timeout=5)
            status = (await asyncio.wait_for(reader.readline(), timeout=5)).split()[1:2]
        except ConnectionError:  # it hung up while more was sent
            status = [b"413"]
        finally:
            writer.close()
        assert status == [b"413"]
