"""One launched group of ranks, seen from the process that asked for it; on another node of the same training that is
``python -m modelyard.train.launch <job uri>``.

Every wait here is bounded: a group that says nothing for ``silence_seconds`` is ended, whatever its processes are
doing. Ending a group closes the pipe that its processes watch, then kills what is left.
"""

from __future__ import annotations

import hashlib
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import modelyard.errors
from modelyard.errors import ClusterUnavailable, ConfigError, ModelyardError, PermanentError, RankLost, TrainingFailed
from modelyard.train.config import TrainConfig
from modelyard.train.events import RankEvent, parse_event
from modelyard.train.nodes import launcher_options, rank_variables

GRACE_SECONDS = 5.0
LOG_TAIL_LINES = 200


class RankGroup:
    """A running launcher and its ranks; a context manager that leaves nothing behind."""

    def __init__(self, spec_file: Path, config: TrainConfig, group: str = "") -> None:
        self._silence_seconds = config.silence_seconds
        self._process = subprocess.Popen(
            launch_command(spec_file, config, group),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # A group of its own: a Ctrl-C in the terminal reaches us first, and we end it in order.
            process_group=0,
            env=_rank_environment(config),
        )
        self._log: deque[str] = deque(maxlen=LOG_TAIL_LINES)
        self._log_thread = threading.Thread(target=self._drain_log, daemon=True)
        self._log_thread.start()

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
        for line in self._lines():
            event = parse_event(line)
            if event is None:
                continue  # a library's own words on the shared channel
            if event.kind == "failed" and event.permanent:
                self.stop()
                raise _rank_error(event)
            if event.kind == "failed" and event.error == ClusterUnavailable.__name__:
                self.stop()
                raise ClusterUnavailable(event.message)
            finished = finished or event.kind == "finished"
            yield event
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
        self._log_thread.join(GRACE_SECONDS)
        for pipe in (self._process.stdout, self._process.stderr):
            assert pipe is not None
            pipe.close()

    def _lines(self) -> Iterator[bytes]:
        """Lines from the ranks until all of them have closed the pipe."""
        assert self._process.stdout is not None
        descriptor, rest = self._process.stdout.fileno(), b""
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            while True:
                if not selector.select(self._silence_seconds):
                    self.stop()
                    raise RankLost(
                        f"no sign of life from any rank for {self._silence_seconds:g} s; the group was ended"
                    )
                chunk = os.read(descriptor, 65536)
                if not chunk:
                    return
                *lines, rest = (rest + chunk).split(b"\n")
                yield from lines

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

    if len(sys.argv) != 2:
        sys.exit("usage: python -m modelyard.train.launch <job uri>, as the node that leads the training prints it")
    job = sys.argv[1]
    try:
        spec = RankSpec.model_validate_json(Store(load_settings()).get(job))
        with tempfile.TemporaryDirectory(prefix="modelyard-job-") as scratch:
            spec_file = Path(scratch) / "spec.json"
            spec_file.write_text(spec.model_dump_json())
            with RankGroup(spec_file, spec.config, group_name(job)) as group:
                for event in group.events():
                    print(event.model_dump_json(), flush=True)
    except ModelyardError as failure:
        sys.exit(f"{type(failure).__name__}: {failure}")


def group_name(job: str) -> str:
    """What the nodes of one training call it."""
    return hashlib.sha256(job.encode()).hexdigest()[:16]


if __name__ == "__main__":
    main()
