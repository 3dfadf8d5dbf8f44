"""Clients that keep asking while something happens to the endpoint."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable

import httpx
import numpy as np

from tests.serve.packages import ROWS, LinearModel

BODY = {"inputs": [{"name": "features", "datatype": "FP64", "shape": [1, 4], "data": ROWS[0].tolist()}]}


class Tally:
    """What the clients saw: answers by version, every answer that was not right, and connections that broke: how many
    kept ones, and of the new ones when (of the monotonic clock) each was asked for."""

    def __init__(self) -> None:
        self.by_version: Counter[str] = Counter()
        self.failures: list[str] = []
        self.num_closed = 0
        self.broken_at: list[float] = []

    @property
    def is_clean(self) -> bool:
        """Every request was answered, and rightly."""
        return not (self.failures or self.num_closed or self.broken_at)

    @property
    def total(self) -> int:
        return sum(self.by_version.values()) + len(self.failures)

    def take(self, response: httpx.Response) -> None:
        if response.status_code != 200:
            self.failures.append(f"{response.status_code} {response.text}")
            return
        version = response.headers["Modelyard-Model-Version"]
        self.by_version[version] += 1
        answered = response.json()["outputs"][-1]["data"]
        if not np.allclose(answered, LinearModel(int(version)).outputs(ROWS[:1])[0], atol=1e-5):
            self.failures.append(f"version {version} answered with another's weights: {answered}")


async def under_load(
    url: str, event: Callable[[], Awaitable[None]], num_clients: int = 6, *, num_fresh: int = 0, after: int = 30
) -> Tally:
    """Run the event while clients ask without a pause: some answers come before it, and ``after`` or more follow it.

    Args:
        num_fresh: how many of the clients open a new connection for each request.
    """
    tally, stop = Tally(), asyncio.Event()

    async def ask(*, is_fresh: bool) -> None:
        client = fresh if is_fresh else kept
        while not stop.is_set():
            began = time.monotonic()
            try:
                tally.take(await client.post("/v2/models/digits/infer", json=BODY))
            except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError):
                tally.num_closed += not is_fresh
                tally.broken_at += [began] if is_fresh else []
            except httpx.HTTPError as failure:
                tally.failures.append(repr(failure))

    async def more(count: int) -> None:
        enough = tally.total + count
        while tally.total < enough:  # noqa: ASYNC110 (nothing announces a count)
            await asyncio.sleep(0.01)

    # A pool of their own: out of a shared one a new request may get a connection that is open, and about to break.
    none_kept = httpx.Limits(max_keepalive_connections=0)
    async with (
        httpx.AsyncClient(base_url=url, timeout=15) as kept,
        httpx.AsyncClient(base_url=url, timeout=15, limits=none_kept, headers={"Connection": "close"}) as fresh,
        asyncio.TaskGroup() as clients,
    ):
        for number in range(num_clients):
            clients.create_task(ask(is_fresh=number < num_fresh))
        await more(5 * num_clients)
        await event()
        await more(after)
        stop.set()
    return tally
