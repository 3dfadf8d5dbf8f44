"""How soon a canary gets no request any more: after a person's notice, and after the gates' own decision.

Under load that does not wait for answers, on the stack's endpoint. Measured is the time until the last request that the
canary answered was *sent*; what it was given before it answers to the end.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import httpx

from benchmarks.figures import Figure
from benchmarks.servers import Server
from modelyard import transitions
from modelyard.gates import RolloutPolicy
from modelyard.revisions import Decision, ModelState, Revision, first_revision, latest_revision, propose_revision
from modelyard.rollout.endpoint import EndpointClient
from modelyard.settings import Settings
from modelyard.storage import Store

Change = Callable[[Revision], transitions.Models | None]
BOUND_MS = 20.0
CONNECTIONS, PER_SECOND = 16, 400
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


def run(settings: Settings, model: str, server: Server, rounds: int) -> list[Figure]:
    """Both ways back, in turns. The endpoint must keep a version of the model warm for going back."""
    asked: list[float] = []
    decided: list[float] = []
    for _ in range(rounds):
        asked.append(asyncio.run(_by_a_person(settings, model, server)))
        decided.append(asyncio.run(_by_a_gate(settings, model, server)))
    named = {"a person's notice": asked, "a gate's decision": decided}
    return [
        Figure(
            name=f"way back: from {name} to the canary's last request",
            subject="endpoint",
            against="the bound",
            unit="ms",
            better="less",
            values=values,
            reference=[BOUND_MS] * len(values),
            target=1.0,
        )
        for name, values in named.items()
    ]


async def _by_a_person(settings: Settings, model: str, server: Server) -> float:
    """Milliseconds."""
    store = Store(settings)
    canary = await asyncio.to_thread(_begin, settings, store, model, HELD)
    async with _Load(server) as load, httpx.AsyncClient(
        base_url=settings.serving_url, headers=settings.endpoint_headers, trust_env=False
    ) as client:  # fmt: skip
        await asyncio.sleep(SETTLE_SECONDS)
        await asyncio.to_thread(_go_back, settings, store, model)
        told = time.time()
        (await client.post("/admin/notify")).raise_for_status()
        await asyncio.sleep(SETTLE_SECONDS)
    return load.last_answered_by(canary, told)


async def _by_a_gate(settings: Settings, model: str, server: Server) -> float:
    """Milliseconds, from the moment that the endpoint's log names."""
    store, log = Store(settings), settings.home / "logs" / "endpoint.log"
    known = len(_moments(log, model))
    canary = await asyncio.to_thread(_begin, settings, store, model, DOOMED)
    async with _Load(server) as load:
        deadline = time.monotonic() + DECIDE_SECONDS
        while len(moments := _moments(log, model)) == known:
            if time.monotonic() > deadline:
                raise RuntimeError(f"no gate sent {model} back within {DECIDE_SECONDS} s")
            await asyncio.sleep(0.02)
        await asyncio.sleep(SETTLE_SECONDS)
    await asyncio.to_thread(_await_end, store, settings, model)
    return load.last_answered_by(canary, moments[-1])


class _Load:
    """Requests by the clock; remembers when each was sent, and which version answered it."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._answers: list[tuple[float, str]] = []
        self._sending: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._client = httpx.AsyncClient(trust_env=False, timeout=10)
        pause = CONNECTIONS / PER_SECOND
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


def _begin(settings: Settings, store: Store, model: str, policy: dict[str, Any]) -> str:
    """The version kept warm becomes the canary; its number."""
    state = _state(store, settings, model)
    assert state.previous, "nothing is kept warm"
    canary, rules = state.previous, RolloutPolicy.model_validate(policy)
    rollout_id = f"{time.time_ns():x}"
    decision = Decision(model=model, action="start", version=canary.version, rollout_id=rollout_id)
    revision = _propose(
        settings, store, lambda now: transitions.begin(now, model, canary, rules, rollout_id), "begin", decision
    )
    with EndpointClient(settings) as endpoint:
        endpoint.notify()
        endpoint.await_revision(revision.number, DECIDE_SECONDS)
    return canary.version


def _go_back(settings: Settings, store: Store, model: str) -> None:
    decision = Decision(model=model, action="return", version="the one before")
    _propose(settings, store, lambda now: transitions.go_back(now, model, None), "go back", decision)


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
    found = re.findall(rf"^(\S+ \S+) ERROR \S+ {model} version \S+ is rolled back", log.read_text(), re.MULTILINE)
    return [datetime.strptime(moment, "%Y-%m-%d %H:%M:%S,%f").timestamp() for moment in found]  # noqa: DTZ007 (local)
