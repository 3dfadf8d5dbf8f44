"""One launched group of ranks, seen from the process that asked for it; on another node of the same training that is
``python -m modelyard.train.launch <job uri>``.

Every wait here is bounded: a group that comes on by no step for ``silence_seconds`` is ended, whatever its processes are
doing, and the ranks that were silent are named. Ending a group closes the pipe that its processes watch, then kills what is left.
"""

from __future__ import annotations

import hashlib
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import modelyard.errors
from modelyard.errors import ClusterUnavailable, ConfigError, ModelyardError, PermanentError, RankLost, TrainingFailed
from modelyard.train.allocator import allocator_variables
from modelyard.train.config import TrainConfig
from modelyard.train.device_locks import NO_DEVICES, HeldDevices, held_devices
from modelyard.train.events import RankEvent, parse_event
from modelyard.train.nodes import launcher_options, rank_variables
from modelyard.train.pulse import Places

GRACE_SECONDS = 5.0
LOG_TAIL_LINES = 200


class RankGroup:
    """A running launcher and its ranks; a context manager that leaves nothing behind."""

    def __init__(
        self, spec_file: Path, config: TrainConfig, group: str = "", devices: HeldDevices = NO_DEVICES
    ) -> None:
        self._silence_seconds = config.silence_seconds
        known = config.launcher == "torch" and not config.meets
        self._places = Places(range(config.ranks) if known else ())
        self._heard: queue.SimpleQueue[RankEvent | None] = queue.SimpleQueue()
        self._alive_at = time.monotonic()
        self._process = subprocess.Popen(
            launch_command(spec_file, config, group),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # A group of its own: a Ctrl-C in the terminal reaches us first, and we end it in order.
            process_group=0,
            env={**_rank_environment(config), **devices.variables},
            # The launcher ends after its ranks: until then nobody else takes their devices.
            pass_fds=devices.locks,
        )
        self._log: deque[str] = deque(maxlen=LOG_TAIL_LINES)
        # Threads: ranks must never wait because this process is busy with what they said.
        self._threads = [threading.Thread(target=drain, daemon=True) for drain in (self._drain_log, self._listen)]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Process id of the launcher."""
        return self._process.pid

    @property
    def log_tail(self) -> str:
        """The last lines that the launcher and the ranks wrote to standard error."""
        return "\n".join(self._log)

    def events(self) -> Iterator[RankEvent]:
        """Events as they happen, until the group has ended well.

        Raises:
            TrainingFailed: (or its subclass, or another `PermanentError`) a rank met an error that would come again.
            RankLost: the launcher gave up, or nothing was heard for too long.
            ClusterUnavailable: Ray's launcher found no cluster, or no room in it.
        """
        finished = False
        while event := self._next():
            if event.kind == "failed" and event.permanent:
                self.stop()
                raise _rank_error(event)
            if event.kind == "failed" and event.error == ClusterUnavailable.__name__:
                self.stop()
                raise ClusterUnavailable(event.message)
            finished = finished or event.kind == "finished"
            yield event
            if event.kind == "failed":
                if stuck := self._places.stuck():
                    yield RankEvent(kind="warning", message=f"when rank {event.rank} gave up: {stuck}")
                self._places.begin_again()
        status = self._wait(GRACE_SECONDS)
        if status != 0 or not finished:
            raise RankLost(f"the launcher ended with status {status}; its last words:\n{self.log_tail[-2000:]}")

    def stop(self) -> None:
        """End every process of the group; returns within a few seconds, and may be called again."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        if self._wait(GRACE_SECONDS) is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._wait(GRACE_SECONDS)
        for thread, pipe in zip(self._threads, (self._process.stderr, self._process.stdout), strict=True):
            assert pipe is not None
            thread.join(GRACE_SECONDS)
            if not thread.is_alive():  # whose pipe a process holds that nothing ends: closing would wait for it
                pipe.close()

    def _next(self) -> RankEvent | None:
        """What the ranks say next; None once all of them have closed the pipe."""
        while True:
            left = self._alive_at + self._silence_seconds - time.monotonic()
            with suppress(queue.Empty):
                return self._heard.get(timeout=max(left, 0))
            if time.monotonic() - self._alive_at > self._silence_seconds:
                stuck = self._places.stuck()
                self.stop()
                raise RankLost(
                    f"no step was reported for {self._silence_seconds:g} s, and the group was ended"
                    + (f"; {stuck}" if stuck else "")
                )

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            event = parse_event(line)  # None: a library's own words on the shared channel
            if event and (event.kind != "pulse" or self._places.hear(event)):
                self._alive_at = time.monotonic()
            if event and event.kind != "pulse":
                self._heard.put(event)
        self._heard.put(None)

    def _drain_log(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._log.append(line.decode(errors="replace").rstrip())

    def _wait(self, seconds: float) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(seconds)
        return None


def launch_command(spec_file: Path, config: TrainConfig, group: str = "") -> list[str]:
    """What starts the ranks and restarts them: Ray's for the whole group, torch's for this node's part of it."""
    if config.launcher == "ray":
        return [sys.executable, "-m", "modelyard.train.ray_launcher", str(spec_file)]
    return [
        *(sys.executable, "-m", "modelyard.train.launcher"),
        *launcher_options(config, group),
        *("--nproc-per-node", str(config.ranks), "--max-restarts", str(config.max_restarts)),
        *("--monitor-interval", "0.3"),
        *("-m", "modelyard.train.worker", "--", str(spec_file)),
    ]


def _rank_environment(config: TrainConfig) -> dict[str, str]:
    """Ours, plus what the launcher needs."""
    return {
        "OMP_NUM_THREADS": "1",
        **allocator_variables(os.environ),
        **os.environ,
        **rank_variables(config),
        "PYTHONUNBUFFERED": "1",
        # torch 2.13's launcher keeps one key-value store over restarts, and gloo its ranks' addresses there without a
        # prefix: a restarted rank that reads a dead one's address waits for it (one restart in four hung). A store for
        # each round ends that.
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }


def _rank_error(event: RankEvent) -> PermanentError:
    """The rank's own exception where it is one of ours, else `TrainingFailed` naming it."""
    kind = getattr(modelyard.errors, event.error or "", None)
    simple = isinstance(kind, type) and issubclass(kind, PermanentError) and kind.__init__ is PermanentError.__init__
    if simple:
        return kind(event.message)
    if kind is ConfigError:
        field, _, problem = event.message.partition(": ")
        return ConfigError(field, problem)
    return TrainingFailed(f"rank {event.rank}: {event.error}: {event.message}")


def main() -> None:
    """Take part in a training that another node leads, until it ends; its events are printed here as well.

    Ends with status 1 and a sentence where this node cannot go on.
    """
    from modelyard.settings import load_settings
    from modelyard.storage import Store
    from modelyard.train.assembly import RankSpec
    from modelyard.train.devices import Accelerators, chosen_kind

    if len(sys.argv) != 2:
        sys.exit("usage: python -m modelyard.train.launch <job uri>, as the node that leads the training prints it")
    job = sys.argv[1]
    try:
        settings, here = load_settings(), Accelerators.here()
        spec = RankSpec.model_validate_json(Store(settings).get(job))
        kind, num_ranks = chosen_kind(spec.config.device, here), spec.config.ranks
        with (
            held_devices(settings.home / "devices", kind, num_ranks, here.count) as devices,
            tempfile.TemporaryDirectory(prefix="modelyard-job-") as scratch,
        ):
            spec_file = Path(scratch) / "spec.json"
            spec_file.write_text(spec.model_dump_json())
            with RankGroup(spec_file, spec.config, group_name(job), devices) as group:
                for event in group.events():
                    print(event.model_dump_json(), flush=True)
    except ModelyardError as failure:
        sys.exit(f"{type(failure).__name__}: {failure}")


def group_name(job: str) -> str:
    """What the nodes of one training call it."""
    return hashlib.sha256(job.encode()).hexdigest()[:16]


if __name__ == "__main__":
    main()
