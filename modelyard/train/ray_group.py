"""One try of a training on a Ray cluster: its agents in their places, and their ranks until they end."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

from modelyard.errors import ConfigError
from modelyard.train.config import TrainConfig
from modelyard.train.events import parse_event
from modelyard.train.ray_agent import Agent, Heard
from modelyard.train.ray_placement import Layout, Place, in_order, rank_environments

START_SECONDS = 60.0  # for an actor's process to be there
POLL_SECONDS = 1.0
SILENT_SECONDS = 20.0  # an agent answers every half second
LAST_WORDS_SECONDS = 1.0  # of other ranks: one may know what was wrong
SAVE_SECONDS = 30.0  # as long as torch's launcher waits


class RayGroup:
    """A placement group, an agent in each of its bundles, and what they start; a context manager that ends all of it."""

    def __init__(self, layout: Layout, config: TrainConfig) -> None:
        from ray.util.placement_group import placement_group

        self._layout = layout
        self._config = config
        bundles = [{"CPU": float(config.ray.cpus * count)} for count in layout.ranks]
        if config.ray.gpus:
            bundles = [
                bundle | {"GPU": float(config.ray.gpus * count)}
                for bundle, count in zip(bundles, layout.ranks, strict=True)
            ]
        self._bundles = bundles
        self._placement = placement_group(bundles, strategy=layout.strategy)
        self._agents: list[Any] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import ray
        from ray.exceptions import RayError
        from ray.util.placement_group import remove_placement_group

        for agent in self._agents:
            with contextlib.suppress(RayError):
                ray.kill(agent)
        remove_placement_group(self._placement)

    def is_placed(self) -> bool:
        """Whether the cluster has set aside all that was asked for."""
        return bool(self._placement.wait(0))

    def start(self, spec: bytes, factories: Sequence[str], code: str) -> None:
        """Start the ranks where there is room now.

        Raises:
            ConfigError: a node runs other code than this one, or none.
        """
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        actor = ray.remote(Agent)
        agents: list[Any] = [
            actor.options(
                num_cpus=bundle["CPU"],
                num_gpus=bundle.get("GPU", 0),
                max_restarts=0,  # ranks begin together, or not at all
                scheduling_strategy=PlacementGroupSchedulingStrategy(self._placement, number),
            ).remote()
            for number, bundle in enumerate(self._bundles)
        ]
        self._agents = agents
        places: list[Place] = ray.get([agent.place.remote(list(factories)) for agent in agents], timeout=START_SECONDS)
        for place in places:
            if place.problem:
                raise ConfigError("train.launcher", f"the Ray node {place.address} cannot run ranks: {place.problem}")
            if place.code != code:
                raise ConfigError(
                    "train.launcher",
                    f"the Ray node {place.address} runs other code, of Modelyard or of yours, or other releases of torch or"
                    " numpy: install the same",
                )
        order = in_order(places)
        self._agents = [agents[index] for index in order]
        told = rank_environments([places[index] for index in order], [self._layout.ranks[index] for index in order])
        starting = [agent.start.remote(spec, its) for agent, its in zip(self._agents, told, strict=True)]
        ray.get(starting, timeout=START_SECONDS)

    def follow(self, pass_on: Callable[[bytes], None], terminating: threading.Event) -> str:
        """Pass on what the ranks say until they have ended; what went wrong, or nothing.

        Args:
            terminating: set when the ranks shall save and end.
        """
        listening = Listening(self._agents, sum(self._layout.ranks), pass_on)
        is_told = False
        while not listening.is_over:
            if terminating.is_set() and not is_told:
                is_told = True
                for agent in self._agents:
                    agent.terminate.remote()
                listening.end_within(SAVE_SECONDS)
            listening.listen()
        return listening.lost


class Listening:
    """What agents are asked again and again.

    Attributes:
        lost: the first thing that went wrong.
    """

    def __init__(self, agents: Sequence[Any], num_ranks: int, pass_on: Callable[[bytes], None]) -> None:
        self.lost = ""
        self._running = num_ranks
        self._pass_on = pass_on
        self._deadline = float("inf")
        self._asked = {agent.hear.remote(): agent for agent in agents}
        self._answered_at = dict.fromkeys(agents, time.monotonic())

    @property
    def is_over(self) -> bool:
        """Whether all ranks have ended, or what is lost has had its time."""
        return not self._running or not self._asked or time.monotonic() > self._deadline

    def end_within(self, seconds: float) -> None:
        """Stop listening then."""
        self._deadline = min(self._deadline, time.monotonic() + seconds)

    def listen(self) -> None:
        """One round of answers."""
        import ray
        from ray.exceptions import RayError

        answered, _ = ray.wait(list(self._asked), num_returns=1, timeout=POLL_SECONDS)
        for reference in answered:
            agent = self._asked.pop(reference)
            try:
                heard: list[Heard] = ray.get(reference)
            except RayError as failure:
                self._lose(f"an agent is gone: {str(failure).splitlines()[0]}")
                continue
            for one in heard:
                self._take(one)
            self._answered_at[agent] = time.monotonic()
            self._asked[agent.hear.remote()] = agent
        if any(time.monotonic() - at > SILENT_SECONDS for at in self._answered_at.values()):
            self._lose(f"a node of the Ray cluster has said nothing for {SILENT_SECONDS:g} s")

    def _take(self, heard: Heard) -> None:
        if heard.kind == "log":
            print(f"[rank {heard.rank}] {heard.line.decode(errors='replace').rstrip()}", file=sys.stderr, flush=True)
        elif heard.kind == "end":
            self._running -= 1
            if heard.status:
                self._lose(f"rank {heard.rank} ended with status {heard.status}")
        # The first rank of each machine tells the same: one of them is enough.
        elif (event := parse_event(heard.line)) and (heard.rank == 0 or event.kind in ("failed", "warning", "pulse")):
            self._pass_on(heard.line)

    def _lose(self, reason: str) -> None:
        self.lost = self.lost or reason
        self.end_within(LAST_WORDS_SECONDS)
