"""The prediction log, as the router sees it: some answers are handed to a process that writes them to the bucket.

Nothing here waits: what finds no room is left out and counted. Fields that are redacted do not leave the router.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import cast

import numpy as np
import orjson

from modelyard.artifacts import Frozen
from modelyard.serve.limits import Limits
from modelyard.serve.running import RunningVersion
from modelyard.serve.starting import StartedProcess, start_recorder
from modelyard.serve.wire import Kind, Tensor, frame, pack_tensors
from modelyard.settings import Settings

logger = logging.getLogger(__name__)

# Names of a record's tensors beside the outputs, which no output has.
REQUEST_ID, MOMENT, INPUTS = "@request_id", "@moment", "@inputs"


class Schema(Frozen):
    """What records of one version have in common; ``redacted`` are the fields that were left out, ``by_token`` whether it
    answers for each token of a text."""

    endpoint: str
    replica: str
    model: str
    version: str
    digest: str
    form: str
    columns: list[str]
    redacted: list[str]
    by_token: bool = False


class Recorder(asyncio.Protocol):
    """Hands answers to the recorder's process, which is started with the first one and again when it dies."""

    def __init__(
        self,
        settings: Settings,
        replica: str,
        limits: Limits,
        *,
        start: Callable[[], StartedProcess] = start_recorder,
        chance: random.Random | None = None,
    ) -> None:
        self.num_recorded = 0
        self.num_dropped = 0
        self._settings = settings
        self._replica = replica
        self._limits = limits
        self._start = start
        self._chance = chance or random.Random()
        self._started: StartedProcess | None = None
        self._starting: asyncio.Task[None] | None = None
        self._transport: asyncio.Transport | None = None
        self._is_full = False
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._schemas: dict[RunningVersion, tuple[int, list[int] | None]] = {}

    @property
    def pid(self) -> int | None:
        return self._started.process.pid if self._started else None

    def draws(self) -> bool:
        """Whether the next answer is to be kept: with the chance that the settings give it."""
        return self._chance.random() < self._settings.endpoint_record

    def offer(
        self,
        version: RunningVersion,
        request_id: str,
        rows: np.ndarray,
        answers: Mapping[str, Tensor],
        seconds: float,
    ) -> None:
        """An answer that was sent, of those that were drawn: kept if there is room, and this is not closed."""
        if not self._settings.endpoint_record:
            return
        if self._waiting_bytes + rows.nbytes > self._limits.max_unrecorded_bytes:
            self.num_dropped += 1
            return
        number, kept = self._schema(version)
        redacted = self._settings.redacted_fields
        record: dict[str, Tensor] = {
            REQUEST_ID: [request_id],
            MOMENT: np.array([time.time(), seconds]),
            INPUTS: rows if kept is None else np.ascontiguousarray(rows[:, kept]),
            **{name: tensor for name, tensor in answers.items() if name not in redacted},
        }
        self._send(frame(number, Kind.RECORD, pack_tensors(record)))
        self.num_recorded += 1

    async def close(self) -> None:
        """Hand over what waits and hang up. The process writes what it has; up to a bound this waits for it."""
        self._settings = self._settings.model_copy(update={"endpoint_record": 0.0})
        if self._starting:
            await self._starting
        pauses = [0.02] * int(self._limits.record_seconds / 0.02)
        for pause_seconds in pauses:
            if not self._waiting and self._transport:
                self._transport.close()
            if self._started is None or self._started.process.poll() is not None:
                return
            await asyncio.sleep(pause_seconds)
        logger.warning("the prediction log's process still writes, and is left to itself")

    def _schema(self, version: RunningVersion) -> tuple[int, list[int] | None]:
        """Number of a version's schema, and which columns are kept (None: all); told to the process at first use."""
        if known := self._schemas.get(version):
            return known
        redacted, columns = self._settings.redacted_fields, version.info.columns
        kept = [place for place, name in enumerate(columns) if name not in redacted]
        fields = [*columns, *(name for name, _, _ in version.info.outputs)]
        schema = Schema(
            endpoint=self._settings.endpoint_name,
            replica=self._replica,
            model=version.model,
            version=version.served.version,
            digest=version.served.artifact.digest,
            form=version.served.form,
            columns=[columns[place] for place in kept],
            redacted=[name for name in fields if name in redacted],
            by_token=version.info.tags is not None,
        )
        self._schemas = {old: numbered for old, numbered in self._schemas.items() if old.state != "stopped"}
        number = 1 + max((number for number, _ in self._schemas.values()), default=0)
        known = self._schemas[version] = number, kept if len(kept) < len(columns) else None
        self._send(frame(number, Kind.SCHEMA, orjson.dumps(schema.model_dump())))
        return known

    # -- the process ----------------------------------------------------------------------------------

    def _send(self, body: bytes) -> None:
        self._waiting.append(body)
        self._waiting_bytes += len(body)
        if self._transport:
            self._pump()
        elif self._starting is None:
            self._starting = asyncio.get_running_loop().create_task(self._begin())

    def _pump(self) -> None:
        while self._waiting and self._transport and not self._is_full:
            body = self._waiting.popleft()
            self._waiting_bytes -= len(body)
            self._transport.write(body)

    async def _begin(self) -> None:
        if self._started:  # dead, as its connection is, but not buried
            self._started.process.kill()
            self._started.process.wait()
        started = self._started = self._start()
        started.connection.setblocking(False)
        await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=started.connection)
        self._starting = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._pump()

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False
        self._pump()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 (asyncio's name)
        """The process died, or was let go. What waits refers to schemas that its successor was never told."""
        if self._waiting:
            self.num_dropped += len(self._waiting)
            self.num_recorded -= len(self._waiting)
        self._transport, self._is_full = None, False
        self._waiting.clear()
        self._waiting_bytes = 0
        self._schemas.clear()
        if self._settings.endpoint_record:
            logger.warning("the prediction log's process died; the next answer starts another")
