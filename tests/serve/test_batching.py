"""Requests of one turn are one call, and share nothing else."""

from __future__ import annotations

import asyncio
import logging

import numpy as np
import pytest

from modelyard.serve.batching import Batcher
from modelyard.serve.limits import Limits
from modelyard.serve.wire import Tensor


class Client:
    """Who waits; one that is broken raises when it is called back."""

    is_over = False

    def __init__(self, *, broken: bool = False) -> None:
        self.broken = broken
        self.heard: list[object] = []

    def answered(self, answers: dict[str, Tensor], begin: int, end: int) -> None:
        if self.broken:
            raise RuntimeError("the client is broken")
        self.heard.append(np.asarray(answers["y"])[begin:end].tolist())

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
    clients = [Client(broken=True), Client()]
    with caplog.at_level(logging.ERROR):
        for client in clients:
            batcher.submit(client, np.ones((1, 1)))
        async with asyncio.timeout(5):
            await batcher.idle.wait()
            await asyncio.sleep(0)
    assert clients[1].heard == heard
    assert "the client is broken" in caplog.text
