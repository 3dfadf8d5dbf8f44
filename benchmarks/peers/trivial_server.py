"""Answers every request with the same bytes, unread: how fast the load generator itself can be.

python -m benchmarks.peers.trivial_server <port>
"""

from __future__ import annotations

import asyncio
import sys
from typing import cast

import uvloop

CONTENT = b'{"outputs":[]}'
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(CONTENT), CONTENT)


class Trivial(asyncio.Protocol):
    """Counts bytes only: a request is what its own content-length says."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's shares no base class with asyncio's
        self._missing = 0

    def data_received(self, data: bytes) -> None:
        if self._missing <= 0:
            head, _, body = data.partition(b"\r\n\r\n")
            length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
            self._missing = int(length or 0) - len(body)
        else:
            self._missing -= len(data)
        if self._missing <= 0:
            self._transport.write(ANSWER)


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Trivial, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
