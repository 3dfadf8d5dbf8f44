"""Requests of one turn are one call, and share nothing else; how many calls the workers owe, and how large they are."""

from __future__ import annotations

import asyncio
import logging
from statistics import median, mode

import numpy as np
import pytest

from modelyard.serve.batching import Batcher
from modelyard.serve.limits import Limits
from modelyard.serve.pieces import PIECE_BYTES
from modelyard.serve.running import _Awaited
from modelyard.serve.unread import Answered, Told, Unread
from modelyard.serve.wire import Tensor

CLIENTS, ROUNDS = 8, 25


class Client:
    """Asks for one row again as soon as it is answered, as one connection of a closed loop does."""

    is_over = False

    def __init__(self, batcher: Batcher) -> None:
        self._batcher = batcher
        self._left = ROUNDS
        self.done = asyncio.get_running_loop().create_future()

    def ask(self) -> None:
        self._batcher.submit(self, np.zeros((1, 4)))

    def answered(self, answers: dict[str, Tensor], begin: int, end: int) -> None:
        assert end - begin == 1
        assert len(answers["outputs"]) >= end
        self._left -= 1
        if self._left:
            self.ask()
        else:
            self.done.set_result(None)

    def failed(self, failure: Exception) -> None:
        self.done.set_exception(failure)


@pytest.mark.parametrize(("call_seconds", "num_owed"), [(0.0005, 8), (0.01, 2)])
async def test_a_slow_model_owes_one_call_a_worker(call_seconds: float, num_owed: int):
    """Two workers, eight clients. A model of microseconds is sent four calls a worker, so that neither waits for the way; one
    of 10 ms gets a single one, with its half of what came meanwhile."""
    owed = 0
    calls: list[tuple[int, int]] = []  # rows, and calls owed with it

    async def infer(rows: np.ndarray) -> dict[str, Tensor]:
        nonlocal owed
        owed += 1
        calls.append((len(rows), owed))
        await asyncio.sleep(call_seconds)
        owed -= 1
        return {"outputs": rows}

    batcher = Batcher(infer, Limits(max_unanswered_batches=8, max_batch_rows=64 if num_owed == 2 else 1))
    clients = [Client(batcher) for _ in range(CLIENTS)]
    for client in clients:
        client.ask()
        await asyncio.sleep(0)  # they do not come in one turn of the loop
    await asyncio.gather(*(client.done for client in clients))
    settled = calls[len(calls) // 2 :]
    assert max(number for _, number in settled) == num_owed
    assert batcher.num_unanswered == 0
    if num_owed == 2:
        assert median(rows for rows, _ in settled) == CLIENTS // 2, "each worker has half of what waits"


async def test_those_who_were_just_answered_are_waited_for():
    """Clients that ask again one turn of the loop after the other are one call of a slow model, not one and the rest; one
    that does not come back keeps the others waiting for a moment only."""
    calls: list[int] = []

    async def infer(rows: np.ndarray) -> dict[str, Tensor]:
        calls.append(len(rows))
        await asyncio.sleep(0.02)
        return {"outputs": rows}

    batcher = Batcher(infer, Limits())

    async def client(place: int, num_rounds: int) -> None:
        for _ in range(num_rounds):
            for _ in range(place):
                await asyncio.sleep(0)
            waiting = _Awaited()
            batcher.submit(waiting, np.zeros((1, 4)))
            await waiting.answer

    await asyncio.gather(*(client(place, 8 + place // 4 * 16) for place in range(8)))
    assert mode(calls[3:8]) == 8
    assert mode(calls[-12:]) == 4, "half of them are gone"


async def test_requests_as_they_came_go_by_themselves():
    """They and rows that wait beside them are calls of their own, in the order in which they came; each is told its answer."""
    calls: list[list[str] | int] = []
    heard: list[bytes] = []

    async def infer(rows: np.ndarray) -> dict[str, Tensor]:
        calls.append(len(rows))
        return {"outputs": rows}

    async def read(requests: list[Unread]) -> Answered:
        calls.append([request.request_id for request in requests])
        return Answered([Told(200, request.body) for request in requests], 0, 0, 0)

    def tell(told: Told, _among: Answered) -> None:
        heard.append(told.content)

    batcher = Batcher(infer, Limits(max_unanswered_batches=1, max_batch_rows=4), read)
    for place, body in enumerate([b"a", b"b", b"", b"c" * 8, b"d" * 8]):
        caller = Caller()
        request = Unread(body, 0, f"{place}", 2, tell)
        batcher.submit(caller, request if body else np.zeros((1, 4)))
    async with asyncio.timeout(5):
        await batcher.idle.wait()
    assert calls == [["0", "1"], 1, ["3"], ["4"]]  # of the last two each may be four rows
    assert heard == [b"a", b"b", b"c" * 8, b"d" * 8]


class Caller:
    """Who waits; one that is broken raises when it is called back."""

    is_over = False

    def __init__(self, *, broken: bool = False) -> None:
        self.broken = broken
        self.heard: list[object] = []

    def answered(self, answers: dict[str, Tensor], begin: int, end: int) -> None:
        if self.broken:
            raise RuntimeError("the client is broken")
        self.heard.append(np.asarray(next(iter(answers.values())))[begin:end].tolist())

    def failed(self, failure: Exception) -> None:
        if self.broken:
            raise RuntimeError("the client is broken")
        self.heard.append(str(failure))


@pytest.mark.parametrize(("failure", "heard"), [(None, [[[2.0]]]), ("no worker", ["no worker"])])
async def test_one_who_cannot_be_called_back_costs_the_others_nothing(
    failure: str | None, heard: list[object], caplog: pytest.LogCaptureFixture
):
    """Those behind it in the batch get their own answers or failures; the log says what happened."""

    async def infer(rows: np.ndarray) -> dict[str, Tensor]:
        if failure:
            raise RuntimeError(failure)
        return {"y": rows * 2}

    batcher = Batcher(infer, Limits())
    callers = [Caller(broken=True), Caller()]
    with caplog.at_level(logging.ERROR):
        for caller in callers:
            batcher.submit(caller, np.ones((1, 1)))
        async with asyncio.timeout(5):
            await batcher.idle.wait()
            await asyncio.sleep(0)
    assert callers[1].heard == heard
    assert "the client is broken" in caplog.text


class Sender:
    """Sends one request, and notes when its answer came."""

    def __init__(self, order: list[Sender]) -> None:
        self.is_over = False
        self.answers: dict[str, Tensor] = {}
        self.failures: list[Exception] = []
        self._order = order

    def answered(self, answers: dict[str, Tensor], begin: int, end: int) -> None:
        self.answers = {name: tensor[begin:end] for name, tensor in answers.items()}
        self._order.append(self)

    def failed(self, failure: Exception) -> None:
        self.failures.append(failure)


async def test_a_large_request_takes_turns_with_others():
    """Forty thousand rows are asked for in pieces: who comes later is answered between them, the large one rightly, and one
    that nobody waits for, or that failed once, is not asked for to its end."""
    asked: list[int] = []
    fails_at: int | None = None

    async def infer(rows: np.ndarray) -> dict[str, Tensor]:
        asked.append(len(rows))
        await asyncio.sleep(0)
        if len(asked) == fails_at:
            raise RuntimeError("no")
        return {"sum": rows.sum(axis=1), "name": [str(row[0]) for row in rows]}

    batcher = Batcher(infer, Limits(max_unanswered_batches=1))
    order: list[Sender] = []
    large, small = Sender(order), Sender(order)
    rows = np.arange(80_000, dtype=np.float64).reshape(40_000, 2) % 997
    batcher.submit(large, rows)
    await asyncio.sleep(0)
    batcher.submit(small, rows[:3])
    await batcher.idle.wait()
    assert order == [small, large]
    assert len(asked) > 2
    assert max(asked) * 16 <= PIECE_BYTES
    assert np.array_equal(large.answers["sum"], rows.sum(axis=1))
    assert large.answers["name"] == [str(row[0]) for row in rows]
    assert np.array_equal(small.answers["sum"], rows[:3].sum(axis=1))

    asked.clear()
    gone = Sender(order)
    batcher.submit(gone, np.ones((1_000_000, 2)))
    gone.is_over = True
    await batcher.idle.wait()
    assert asked == []

    fails_at = 2
    unlucky = Sender(order)
    batcher.submit(unlucky, rows)
    await batcher.idle.wait()
    assert [str(failure) for failure in unlucky.failures] == ["no"]
    assert len(asked) == 2
    assert batcher._queued_bytes == 0
