"""The process that has a Ray cluster start the ranks: ``python -m modelyard.train.ray_launcher <spec.json>``.

It stands where torch's launcher does: events leave by its standard output, a lost rank begins the group anew, SIGTERM is
passed on, and it ends when the process that started it is gone. Ray ends with it what it has started.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from modelyard.errors import ClusterUnavailable, ConfigError, ModelyardError, PermanentError
from modelyard.models.config import CustomConfig
from modelyard.ray_cluster import NODE_ADVICE, connect
from modelyard.train.config import TrainConfig
from modelyard.train.events import EventWriter, RankEvent
from modelyard.train.launcher import exit_with_parent
from modelyard.train.ray_agent import training_code
from modelyard.train.ray_group import RayGroup
from modelyard.train.ray_placement import Layout, lay_out, rooms

CONNECT_SECONDS = 20.0
POLL_SECONDS = 1.0
LEAVE_SECONDS = 3.0


class Launcher:
    """Begins groups of ranks until one of them has ended well."""

    def __init__(self, spec: bytes, config: TrainConfig, events: EventWriter) -> None:
        self._spec = spec
        self._config = config
        self._events = events
        self._factories = [config.model.factory] if isinstance(config.model, CustomConfig) else []
        self._code = training_code(self._factories)
        self._terminating = threading.Event()

    def terminate(self) -> None:
        """Have the ranks save and end, and begin none again."""
        self._terminating.set()

    def run(self) -> bool:
        """Whether the training has come to its end.

        Raises:
            ClusterUnavailable: there was no room in time.
            ConfigError: the cluster is too small, or runs other code.
        """
        from ray.exceptions import RayError

        for restart in range(self._config.max_restarts + 1):
            layout = self._layout(is_first=restart == 0)
            with RayGroup(layout, self._config) as group:
                self._await("room", group.is_placed)
                try:
                    group.start(self._spec, self._factories, self._code)
                    lost = group.follow(self._events.pass_on, self._terminating)
                except RayError as failure:
                    lost = f"the ranks cannot be started: {failure}"
            if not lost:
                return True
            print(f"try {restart + 1} of {self._config.max_restarts + 1}: {lost}", file=sys.stderr, flush=True)
            if self._terminating.is_set():
                return False
        return False

    def _layout(self, *, is_first: bool) -> Layout:
        """What to ask for. A cluster that was large enough at first may have lost a node that comes again."""
        import ray

        if is_first:
            return lay_out(self._config, rooms(ray.nodes(), self._config))
        found: list[Layout] = []

        def fits() -> bool:
            try:
                found.append(lay_out(self._config, rooms(ray.nodes(), self._config)))
            except ConfigError:
                return False
            return True

        self._await("as many nodes as before", fits)
        return found[-1]

    def _await(self, what: str, is_there: Callable[[], bool]) -> None:
        """Poll until something is there, within the bound.

        Raises:
            ClusterUnavailable: it does not come.
        """
        import ray

        deadline = time.monotonic() + self._config.ray.wait_seconds
        while not is_there():
            if time.monotonic() > deadline or self._terminating.is_set():
                free, there = ray.available_resources(), ray.cluster_resources()
                raise ClusterUnavailable(
                    f"{what} for {self._config.most_ranks} ranks was not there within {self._config.ray.wait_seconds:g} s"
                    f" (train.ray.wait_seconds): {_said(free)} of {_said(there)} are free"
                )
            self._events.emit(RankEvent(kind="progress"))
            time.sleep(POLL_SECONDS)


def main() -> None:
    """Launch what the spec says; what stands in the way is told as an event."""
    exit_with_parent()
    events = EventWriter(0)
    spec = Path(sys.argv[1]).read_bytes()
    config = TrainConfig.model_validate(json.loads(spec)["config"])
    try:
        _connect(config.ray.address, events)
        launcher = Launcher(spec, config, events)
        signal.signal(signal.SIGTERM, lambda *_: launcher.terminate())
        is_done = launcher.run()
    except ModelyardError as failure:
        _fail(failure, events)
    _leave(0 if is_done else 1)


def _connect(address: str, events: EventWriter) -> None:
    def give_up() -> None:
        reason = f"either no Ray answers there, or this machine is no node of that cluster; {NODE_ADVICE}"
        _fail(
            ClusterUnavailable(f"{address} has not taken this process in within {CONNECT_SECONDS:g} s: {reason}"),
            events,
        )

    timer = threading.Timer(CONNECT_SECONDS, give_up)
    timer.start()
    connect(address, "train.ray.address")
    timer.cancel()


def _fail(failure: ModelyardError, events: EventWriter) -> NoReturn:
    print(f"{type(failure).__name__}: {failure}", file=sys.stderr, flush=True)
    is_permanent = isinstance(failure, PermanentError)
    events.emit(RankEvent(kind="failed", message=str(failure), error=type(failure).__name__, permanent=is_permanent))
    _leave(1)


def _leave(status: int) -> NoReturn:
    """End in order where Ray lets us, and soon in any case."""
    timer = threading.Timer(LEAVE_SECONDS, os._exit, [status])
    timer.daemon = True
    timer.start()
    if ray := sys.modules.get("ray"):
        ray.shutdown()
    os._exit(status)


def _said(resources: dict[str, Any]) -> str:
    return f"{resources.get('CPU', 0):g} CPU and {resources.get('GPU', 0):g} GPU"


if __name__ == "__main__":
    main()
