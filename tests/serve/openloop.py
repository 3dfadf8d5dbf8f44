"""Open-loop load: requests leave by the clock, whether or not the ones before were answered."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Self

import numpy as np

from tests.serve.load import BODY
from tests.serve.packages import ROWS, LinearModel

FRESH_EVERY = 10  # each tenth request has a connection of its own
ANSWER_SECONDS = 15.0
IDLE_SECONDS = 20.0  # well below what servers keep an idle connection: who uses one as it is closed has lost


@dataclass
class Record:
    """What became of every request.

    Attributes:
        sent: (when it was sent on the monotonic clock, version that answered), in the order of the answers.
        failures: what was not a right answer.
    """

    sent: list[tuple[float, str]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        return len(self.sent) + len(self.failures)

    def by_version(self) -> Counter[str]:
        return Counter(version for _, version in self.sent)

    def last_sent_to(self, version: str, since: float) -> float:
        """Seconds from a moment to the last request that this version answered; negative: none after it."""
        return max((at for at, answered in self.sent if answered == version), default=since - 1) - since


class OpenLoop:
    """Sends `per_second` requests each second until the block ends."""

    def __init__(self, port: int, per_second: float, model: str = "digits") -> None:
        self.record = Record()
        self._path = f"/v2/models/{model}/infer".encode()
        self._port = port
        self._pause = 1 / per_second
        self._idle: list[tuple[float, asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._under_way: set[asyncio.Task[None]] = set()
        self._expected: dict[str, np.ndarray] = {}
        self._stop = asyncio.Event()
        self._clock: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._clock = asyncio.create_task(self._tick())
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._stop.set()
        if self._clock:
            await self._clock
        if self._under_way:
            await asyncio.wait(self._under_way)
        for _, _, writer in self._idle:
            writer.close()

    async def _tick(self) -> None:
        due, number = time.monotonic(), 0
        while not self._stop.is_set():
            if (wait := due - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            task = asyncio.create_task(self._ask(number % FRESH_EVERY == 0))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)
            number += 1
            due += self._pause

    async def _ask(self, is_fresh: bool) -> None:
        body = json.dumps(BODY).encode()
        close = b"connection: close\r\n" if is_fresh else b""
        head = b"POST %s HTTP/1.1\r\nhost: test\r\n%scontent-length: %d\r\n\r\n" % (self._path, close, len(body))
        sent, writer = time.monotonic(), None
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                reader, writer = (not is_fresh and self._take_idle()) or await self._connect()
                writer.write(head + body)
                status, headers, content = await _answer(reader)
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as failure:
            self.record.failures.append(f"{sent:.3f} {failure!r}")
            if writer:
                writer.close()
            return
        if is_fresh or headers.get("connection") == "close":
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        else:
            self._idle.append((time.monotonic(), reader, writer))
        self._judge(sent, status, headers, content)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self._port)

    def _take_idle(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """The connection that was used last; those that were not for long are closed."""
        while self._idle and time.monotonic() - self._idle[0][0] > IDLE_SECONDS:
            self._idle.pop(0)[2].close()
        return self._idle.pop()[1:] if self._idle else None

    def _judge(self, sent: float, status: int, headers: dict[str, str], content: bytes) -> None:
        if status != 200:
            self.record.failures.append(f"{sent:.3f} {status} {content[:200]!r}")
            return
        version = headers["modelyard-model-version"]
        if version not in self._expected:
            self._expected[version] = LinearModel(int(version)).outputs(ROWS[:1])[0]
        if np.allclose(json.loads(content)["outputs"][-1]["data"], self._expected[version], atol=1e-5):
            self.record.sent.append((sent, version))
        else:
            self.record.failures.append(f"{sent:.3f} version {version} answered with another's weights")


async def _answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
    return int(head[0].split()[1]), headers, await reader.readexactly(int(headers["content-length"]))
