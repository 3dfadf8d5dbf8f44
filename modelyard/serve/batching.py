"""Requests that arrived in one turn of the event loop become one call to the model.

A lone request is sent at the end of its turn. While the worker owes as many calls as it may, later
requests gather, so that a slow model gets larger batches and a fast one short waits, without a knob. Clients that a slow
model has just answered tend to ask again, one after the other: a worker that is idle waits for them a moment, as a call for
the first of them alone would keep the others waiting for its end.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import cast

import numpy as np

from modelyard.errors import EndpointUnavailable
from modelyard.serve.limits import Limits
from modelyard.serve.pieces import Piece, Waiting, Whole, piece_rows
from modelyard.serve.unread import Answered, Unread
from modelyard.serve.wire import RAW_OUTPUTS, Tensor
from modelyard.transform import joined

logger = logging.getLogger(__name__)

UNHEARD = "an answer did not reach who waited for it; the others of its batch are not concerned"
RETURN_FRACTION, RETURN_SECONDS = 0.25, 0.005  # of a call, and at most: how long those who were answered are waited for
# Of which `Limits.max_unanswered_batches` is a multiple: one that runs, and some that wait, so that a worker does not sleep while
# the router writes answers. With two of them a perceptron gave a fifth fewer answers.
CALLS_A_WORKER = 4

Infer = Callable[[np.ndarray], Awaitable[dict[str, Tensor]]]
Read = Callable[[list[Unread]], Awaitable[Answered]]
Queued = tuple[np.ndarray | Unread, Waiting]


class Overloaded(EndpointUnavailable):
    """More waits for this version than may wait."""


class Batcher:
    """The queue in front of one version.

    Args:
        read: for requests that are queued as they came.
    """

    def __init__(self, infer: Infer, limits: Limits, read: Read | None = None) -> None:
        self.num_unanswered = 0
        self.idle = asyncio.Event()
        self.idle.set()
        self._infer = infer
        self._read = read
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._queue: deque[Queued] = deque()
        self._queued_bytes = 0
        self._flush_is_due = False
        self._running: set[asyncio.Task[None]] = set()
        self._call_seconds = 0.0  # of the last calls, the later ones more
        self._num_returning = 0  # who were answered and have not asked again, until ..
        self._returning_until = 0.0
        self._waiting_timer: asyncio.TimerHandle | None = None

    def submit(self, waiting: Waiting, rows: np.ndarray | Unread) -> None:
        """Get answers for these rows (n, width), or tokens of texts (n, t) int64. Very many are asked for in pieces.

        A request as it came is told its answer itself; of ``waiting`` it needs only what else may become of it.

        Raises:
            Overloaded: the queue is full.
        """
        limits = self._limits
        if len(self._queue) >= limits.max_queued_requests or self._queued_bytes >= limits.max_queued_bytes:
            raise Overloaded(f"{len(self._queue)} requests are waiting already")
        self._queued_bytes += rows.nbytes
        self._num_returning -= self._num_returning > 0
        if len(rows) > limits.max_batch_rows and isinstance(rows, np.ndarray) and len(rows) > piece_rows(rows):
            rows, waiting = Whole(waiting, rows).piece()
        self._enqueue(rows, waiting)
        if not self._flush_is_due:
            self._flush_is_due = True
            self._loop.call_soon(self._flush)

    def _enqueue(self, rows: np.ndarray | Unread, waiting: Waiting) -> None:
        self._queue.append((rows, waiting))
        self.num_unanswered += 1
        if self.num_unanswered == 1:
            self.idle.clear()

    def _flush(self) -> None:
        self._flush_is_due = False
        while self._queue and (free := self._num_calls_ahead() - len(self._running)) > 0:
            if self._is_slow and self._awaits_others():
                return
            batch = self._take(-(-len(self._queue) // free) if self._is_slow else len(self._queue))
            if batch:
                task = self._loop.create_task(self._run(batch))
                self._running.add(task)
                task.add_done_callback(self._finished)

    def _awaits_others(self) -> bool:
        """Whether those who were just answered are waited for, before a call for fewer."""
        left = self._returning_until - self._loop.time()
        if not self._num_returning or left <= 0 or len(self._queue) >= self._limits.max_batch_rows:
            return False
        if self._waiting_timer is None:
            self._waiting_timer = self._loop.call_later(left, self._have_waited)
        return True

    def _have_waited(self) -> None:
        self._waiting_timer = None
        self._flush()

    def _expect(self, num_answered: int) -> None:
        """So many may ask again now."""
        now = self._loop.time()
        self._num_returning = num_answered + (self._num_returning if now < self._returning_until else 0)
        self._returning_until = now + min(RETURN_SECONDS, RETURN_FRACTION * self._call_seconds)

    @property
    def _is_slow(self) -> bool:
        return self._call_seconds > self._limits.slow_call_seconds

    def _num_calls_ahead(self) -> int:
        """Calls that the workers may owe. A quick model is given its next call before it has answered, as the way there
        takes as long as the call; of a slow one that would halve the batches, which cost it more than the way."""
        allowed = self._limits.max_unanswered_batches
        return max(1, allowed // CALLS_A_WORKER) if self._is_slow else allowed

    def _time(self, seconds: float, num_before: int) -> None:
        """Note how long a call took, its wait behind those before it on the same worker left out."""
        num_workers = max(1, self._limits.max_unanswered_batches // CALLS_A_WORKER)
        alone = seconds / (1 + num_before // num_workers)
        self._call_seconds += (alone - self._call_seconds) / 8

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._flush()

    def _take(self, most: int) -> list[Queued]:
        """The oldest requests, up to so many and to the cap of rows; at least one, whatever its size. Of a slow model each
        idle worker gets its share of what waits."""
        batch: list[Queued] = []
        num_rows, first = 0, self._queue[0][0]
        while self._queue and len(batch) < most:
            rows, waiting = self._queue[0]
            if batch and (num_rows + len(rows) > self._limits.max_batch_rows or not _go_together(first, rows)):
                break
            self._queue.popleft()
            self._queued_bytes -= rows.nbytes
            if waiting.is_over:
                self._forget(waiting)
                continue
            batch.append((rows, waiting))
            num_rows += len(rows)
            if isinstance(waiting, Piece) and (following := waiting.whole.following(waiting)):
                self._enqueue(*following)  # behind those who came meanwhile
        return batch

    def _forget(self, waiting: Waiting) -> None:
        """Nobody waits for it any more, nor for what would follow."""
        if isinstance(waiting, Piece):
            self._queued_bytes -= waiting.whole.bytes_behind(waiting)
        self._settled(1)

    async def _run(self, batch: list[Queued]) -> None:
        began, num_before = self._loop.time(), len(self._running) - 1
        try:
            answers = await self._ask([asked for asked, _ in batch])
            self._time(self._loop.time() - began, num_before)
        except Exception as failure:  # noqa: BLE001 (whatever it is, those who wait shall hear it)
            self._owes_no_more()
            self._settled(len(batch))
            for _, waiting in batch:
                try:
                    waiting.failed(failure)
                except Exception:
                    logger.exception(UNHEARD)
            return
        self._owes_no_more()
        self._settled(len(batch))
        self._expect(len(batch))
        begin = 0
        for place, (asked, waiting) in enumerate(batch):
            try:
                if isinstance(answers, Answered):
                    cast("Unread", asked).tell(answers.told[place], answers)
                elif isinstance(asked, np.ndarray):
                    begin += len(asked)
                    waiting.answered(_of_width(answers, asked.shape[1]), begin - len(asked), begin)
            except Exception:
                logger.exception(UNHEARD)

    async def _ask(self, asked: list[np.ndarray | Unread]) -> dict[str, Tensor] | Answered:
        """All of them are rows, or none (`_go_together`)."""
        if self._read and isinstance(asked[0], Unread):
            return await self._read(cast("list[Unread]", asked))
        rows = cast("list[np.ndarray]", asked)
        return await self._infer(rows[0] if len(rows) == 1 else joined(rows))

    def _owes_no_more(self) -> None:
        """Before the answers are given out: who is answered may ask again in the same turn, and finds the worker idle."""
        self._running.discard(cast("asyncio.Task[None]", asyncio.current_task()))

    def _settled(self, count: int) -> None:
        self.num_unanswered -= count
        if not self.num_unanswered:
            self.idle.set()


def _go_together(first: np.ndarray | Unread, other: np.ndarray | Unread) -> bool:
    if isinstance(first, Unread) or isinstance(other, Unread):
        return type(first) is type(other)
    return other.shape[1] == first.shape[1] or other.dtype.kind == "i"  # texts are of any length


def _of_width(answers: dict[str, Tensor], tokens: int) -> dict[str, Tensor]:
    """Answers for each token without those for places that only longer texts beside them have."""
    raw = answers.get(RAW_OUTPUTS)
    if not isinstance(raw, np.ndarray) or raw.ndim < 3 or raw.shape[1] == tokens:
        return answers
    return {name: tensor[:, :tokens] if isinstance(tensor, np.ndarray) else tensor for name, tensor in answers.items()}
