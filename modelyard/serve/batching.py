"""Requests that arrived in one turn of the event loop become one call to the model.

No timer: a lone request is sent at the end of its turn. While the worker owes as many calls as it may, later
requests gather, so that a slow model gets larger batches and a fast one short waits, without a knob.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

import numpy as np

from modelyard.errors import EndpointUnavailable
from modelyard.serve.limits import Limits
from modelyard.serve.wire import Tensor

Infer = Callable[[np.ndarray], Awaitable[dict[str, Tensor]]]


class Overloaded(EndpointUnavailable):
    """More waits for this version than may wait."""


class Batcher:
    """The queue in front of one version."""

    def __init__(self, infer: Infer, limits: Limits) -> None:
        self._infer = infer
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[np.ndarray, asyncio.Future[dict[str, Tensor]]]] = deque()
        self._waiting_bytes = 0
        self._flush_is_due = False
        self._running: set[asyncio.Task[None]] = set()

    def submit(self, rows: np.ndarray) -> asyncio.Future[dict[str, Tensor]]:
        """The future answers for these rows (n, width).

        Raises:
            Overloaded: the queue is full.
        """
        limits = self._limits
        if len(self._waiting) >= limits.max_queued_requests or self._waiting_bytes >= limits.max_queued_bytes:
            raise Overloaded(f"{len(self._waiting)} requests are waiting already")
        answer: asyncio.Future[dict[str, Tensor]] = self._loop.create_future()
        self._waiting.append((rows, answer))
        self._waiting_bytes += rows.nbytes
        if not self._flush_is_due:
            self._flush_is_due = True
            self._loop.call_soon(self._flush)
        return answer

    def _flush(self) -> None:
        self._flush_is_due = False
        while self._waiting and len(self._running) < self._limits.max_unanswered_batches:
            batch = self._take()
            if batch:
                task = self._loop.create_task(self._run(batch))
                self._running.add(task)
                task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._flush()

    def _take(self) -> list[tuple[np.ndarray, asyncio.Future[dict[str, Tensor]]]]:
        """The oldest requests, up to the cap of rows; at least one, whatever its size."""
        batch: list[tuple[np.ndarray, asyncio.Future[dict[str, Tensor]]]] = []
        num_rows, width = 0, self._waiting[0][0].shape[1]
        while self._waiting:
            rows, answer = self._waiting[0]
            if batch and (num_rows + len(rows) > self._limits.max_batch_rows or rows.shape[1] != width):
                break
            self._waiting.popleft()
            self._waiting_bytes -= rows.nbytes
            if not answer.done():  # its client may have run out of time
                batch.append((rows, answer))
                num_rows += len(rows)
        return batch

    async def _run(self, batch: list[tuple[np.ndarray, asyncio.Future[dict[str, Tensor]]]]) -> None:
        try:
            joined = batch[0][0] if len(batch) == 1 else np.concatenate([rows for rows, _ in batch])
            answers = await self._infer(joined)
        except Exception as failure:  # noqa: BLE001 (whatever it is, those who wait shall hear it)
            for _, answer in batch:
                if not answer.done():
                    answer.set_exception(failure)
            return
        begin = 0
        for rows, answer in batch:
            end = begin + len(rows)
            if not answer.done():
                answer.set_result({name: tensor[begin:end] for name, tensor in answers.items()})
            begin = end
