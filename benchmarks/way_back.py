"""How soon a canary gets no request any more: after a person's notice, and after the gates' own decision.

Under load that does not wait for answers, on the stack's endpoint, alone and with replicas beside it. Measured is the time until the last request that the
canary answered was *sent*; what it was given before it answers to the end.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import httpx

from benchmarks import endpoint_start
from benchmarks.figures import Figure
from benchmarks.servers import Server
from modelyard import transitions
from modelyard.gates import RolloutPolicy
from modelyard.revisions import Decision, ModelState, Revision, first_revision, latest_revision, propose_revision
from modelyard.rollout.endpoint import EndpointClient
from modelyard.settings import Settings
from modelyard.storage import Store

Change = Callable[[Revision], transitions.Models | None]
BOUND_MS, POLL_MS = 20.0, 2000.0
CONNECTIONS, PER_SECOND, REPLICAS = 16, 400, 3
NOTE = (
    f"The way back: {PER_SECOND} requests a second by the clock, the canary at 50 %; until the last request that it"
    f" answered was sent. With {REPLICAS} replicas on one document the requests are shared, each of them is told, and a time is"
    " that of the slowest, from its own notice or decision on; one that is not told looks every 2 s, and reads every second"
    " what the others have counted."
)
SETTLE_SECONDS = 0.5  # before and after
DECIDE_SECONDS = 20
# Half of the requests, until somebody says no: a person, or a gate that no canary passes.
HELD: dict[str, Any] = {
    "steps": [50, 100],
    "min_requests": 10**9,
    "replay": {"enabled": False},
    "gates": {"latency": False},
}
DOOMED = HELD | {"min_requests": 20, "min_seconds": 0, "gates": {"latency": False, "max_error_rate": None,
                 "max_latency_factor": 1e-9}}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Replica:
    """One endpoint of those that follow the same document: where it is asked, and where it logs."""

    server: Server
    log: Path

    @property
    def url(self) -> str:
        return str(httpx.URL(self.server.url).copy_with(path="/"))


def run(settings: Settings, model: str, server: Server, rounds: int, scratch: Path) -> list[Figure]:
    """Both ways back, in turns: of the stack's endpoint alone, then of it with others beside it. It must keep a version of
    the model warm for going back."""
    alone = [Replica(server=server, log=settings.home / "logs" / "endpoint.log")]
    figures = _measure(settings, model, alone, rounds)
    with ExitStack() as running:
        others = [_replica(running, settings, server, scratch / f"replica-{n}") for n in range(1, REPLICAS)]
        figures += _measure(settings, model, [*alone, *others], rounds)
    return figures


def _replica(running: ExitStack, settings: Settings, server: Server, folder: Path) -> Replica:
    """Another endpoint on the same document, that already serves what it says."""
    folder.mkdir()
    home = endpoint_start.copy_home(settings, folder)
    url, _ = running.enter_context(endpoint_start.beside(home, endpoint_start.access(settings)))
    its = replace(server, url=str(httpx.URL(server.url).copy_with(port=httpx.URL(url).port)))
    endpoint_start.await_answer(its.url, its)
    return Replica(server=its, log=home / "log")


def _measure(settings: Settings, model: str, replicas: Sequence[Replica], rounds: int) -> list[Figure]:
    asked: list[float] = []
    decided: list[float] = []
    everywhere: list[float] = []
    for _ in range(rounds):
        asked.append(max(asyncio.run(_by_a_person(settings, model, replicas))))
        own, last = asyncio.run(_by_a_gate(settings, model, replicas))
        decided.append(max(own))
        everywhere.append(last)
    whose = "" if len(replicas) == 1 else f", the slowest of {len(replicas)} replicas"
    figures = [
        _figure(f"a person's notice{whose}", asked, BOUND_MS),
        _figure(f"a gate's own decision{whose}", decided, BOUND_MS),
    ]
    if len(replicas) > 1:
        figures.append(_figure(f"the first of {len(replicas)} replicas' decision", everywhere, POLL_MS))
    return figures


def _figure(since: str, values: Sequence[float], bound: float) -> Figure:
    return Figure(
        name=f"way back: from {since} to the canary's last request",
        subject="endpoint",
        against="the bound",
        unit="ms",
        better="less",
        values=values,
        reference=[bound] * len(values),
        target=1.0,
    )


async def _by_a_person(settings: Settings, model: str, replicas: Sequence[Replica]) -> list[float]:
    """Milliseconds of each, from the moment that it is told."""
    store = Store(settings)
    canary = await asyncio.to_thread(_begin, settings, store, model, HELD, replicas)
    async with (
        _under_load(replicas) as loads,
        httpx.AsyncClient(headers=settings.endpoint_headers, trust_env=False) as client,
    ):
        await asyncio.sleep(SETTLE_SECONDS)
        back = await asyncio.to_thread(_go_back, settings, store, model)

        async def tell(replica: Replica) -> float:
            told = time.time()
            (await client.post(f"{replica.url}admin/notify?revision={back.number}")).raise_for_status()
            return told

        moments = await asyncio.gather(*map(tell, replicas))
        await asyncio.sleep(SETTLE_SECONDS)
    return [load.last_answered_by(canary, told) for load, told in zip(loads, moments, strict=True)]


async def _by_a_gate(settings: Settings, model: str, replicas: Sequence[Replica]) -> tuple[list[float], float]:
    """Milliseconds of each, from the moment that its log names: its own decision, or, where another was quicker, when it
    served what that one wrote; and of all together, from the first one's moment."""
    store = Store(settings)
    known = [len(_moments(replica.log, model)) for replica in replicas]
    canary = await asyncio.to_thread(_begin, settings, store, model, DOOMED, replicas)
    seen = [len(_takeovers(replica.log)) for replica in replicas]
    async with _under_load(replicas) as loads:
        deadline = time.monotonic() + DECIDE_SECONDS
        while (moments := _ends(replicas, model, known, seen)) is None:
            if time.monotonic() > deadline:
                raise RuntimeError(f"no gate sent {model} back within {DECIDE_SECONDS} s")
            await asyncio.sleep(0.02)
        await asyncio.sleep(SETTLE_SECONDS)
    await asyncio.to_thread(_await_end, store, settings, model)
    own = [load.last_answered_by(canary, moment) for load, moment in zip(loads, moments, strict=True)]
    return own, max(load.last_answered_by(canary, min(moments)) for load in loads)


def _ends(replicas: Sequence[Replica], model: str, known: Sequence[int], seen: Sequence[int]) -> list[float] | None:
    """When each replica's canary had to go; None while one of them does not know yet."""
    found: list[float] = []
    for replica, decided, taken in zip(replicas, known, seen, strict=True):
        moments = [*_moments(replica.log, model)[decided:], *_takeovers(replica.log)[taken:]]
        if not moments:
            return None
        found.append(min(moments))
    return found


@asynccontextmanager
async def _under_load(replicas: Sequence[Replica]) -> AsyncGenerator[list[_Load]]:
    """All of them, with their shares of the requests."""
    async with AsyncExitStack() as firing:
        yield [
            await firing.enter_async_context(_Load(replica.server, PER_SECOND / len(replicas))) for replica in replicas
        ]


class _Load:
    """Requests by the clock; remembers when each was sent, and which version answered it."""

    def __init__(self, server: Server, per_second: float) -> None:
        self._server = server
        self._pause = CONNECTIONS / per_second
        self._answers: list[tuple[float, str]] = []
        self._sending: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._client = httpx.AsyncClient(trust_env=False, timeout=10)
        pause = self._pause
        self._sending = [asyncio.create_task(self._send(pause, n * pause / CONNECTIONS)) for n in range(CONNECTIONS)]
        return self

    async def __aexit__(self, *exception: object) -> None:
        for task in self._sending:
            task.cancel()
        await asyncio.gather(*self._sending, return_exceptions=True)
        await self._client.aclose()

    async def _send(self, pause: float, offset: float) -> None:
        due = time.monotonic() + offset
        while True:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            due += pause
            sent = time.time()
            answer = await self._client.post(self._server.url, content=self._server.body, headers=self._server.headers)
            answer.raise_for_status()
            self._answers.append((sent, answer.headers["Modelyard-Model-Version"]))

    def last_answered_by(self, version: str, since: float) -> float:
        """Milliseconds from a moment to the last request sent that a version answered; 0 where none came after it.

        Raises:
            RuntimeError: the version, or what should have followed it, answered nothing: there was no way back to measure.
        """
        times = [sent for sent, answered in self._answers if answered == version]
        others = [sent for sent, answered in self._answers if answered != version and sent > since]
        if not times or not others:
            raise RuntimeError(f"{len(times)} answers by version {version}, {len(others)} by others afterwards")
        return max(0.0, 1000 * (max(times) - since))


def _begin(settings: Settings, store: Store, model: str, policy: dict[str, Any], replicas: Sequence[Replica]) -> str:
    """The version kept warm becomes the canary everywhere; its number."""
    state = _state(store, settings, model)
    assert state.previous, "nothing is kept warm"
    canary, rules = state.previous, RolloutPolicy.model_validate(policy)
    rollout_id = f"{time.time_ns():x}"
    decision = Decision(model=model, action="start", version=canary.version, rollout_id=rollout_id)
    revision = _propose(
        settings, store, lambda now: transitions.begin(now, model, canary, rules, rollout_id), "begin", decision
    )
    for replica in replicas:
        with EndpointClient(settings.model_copy(update={"endpoint_url": replica.url})) as endpoint:
            endpoint.notify(revision.number)
            endpoint.await_revision(revision.number, DECIDE_SECONDS)
    return canary.version


def _go_back(settings: Settings, store: Store, model: str) -> Revision:
    decision = Decision(model=model, action="return", version="the one before")
    return _propose(settings, store, lambda now: transitions.go_back(now, model, None), "go back", decision)


def _propose(settings: Settings, store: Store, change: Change, reason: str, decision: Decision) -> Revision:
    return propose_revision(
        store, settings.endpoint_name, change, reason=reason, author="benchmarks", decision=decision
    )


def _await_end(store: Store, settings: Settings, model: str) -> None:
    deadline = time.monotonic() + DECIDE_SECONDS
    while _state(store, settings, model).rollout:
        if time.monotonic() > deadline:
            raise RuntimeError(f"the rollout of {model} did not end within {DECIDE_SECONDS} s")
        time.sleep(0.05)


def _state(store: Store, settings: Settings, model: str) -> ModelState:
    return (latest_revision(store, settings.endpoint_name) or first_revision()).models[model]


def _moments(log: Path, model: str) -> Sequence[float]:
    """When the endpoint decided against a canary, by its log: seconds since the epoch, to a millisecond."""
    return _logged(log, rf"ERROR \S+ {model} version \S+ is rolled back")


def _takeovers(log: Path) -> Sequence[float]:
    """When it began to serve another revision."""
    return _logged(log, r"INFO \S+ serving revision \d+")


def _logged(log: Path, line: str) -> Sequence[float]:
    found = re.findall(rf"^(\S+ \S+) {line}", log.read_text(), re.MULTILINE)
    return [datetime.strptime(moment, "%Y-%m-%d %H:%M:%S,%f").timestamp() for moment in found]  # noqa: DTZ007 (local)
