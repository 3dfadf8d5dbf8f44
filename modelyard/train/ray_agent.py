"""What Ray runs on a node of its cluster: an actor that starts ranks there as processes, and tells what they say.

Ranks are processes of their own, not the actor: so they are what they are under torch's launcher, take SIGTERM, and may be
killed while they hang in a collective. They end when the actor does, which Ray ends with the process that asked for it.
"""

from __future__ import annotations

import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Literal

from modelyard.code_version import code_version
from modelyard.train.allocator import allocator_variables
from modelyard.train.launcher import PARENT_GONE_STATUS
from modelyard.train.nodes import interface_variables
from modelyard.train.ray_placement import Place

HEAR_SECONDS = 0.5  # between two questions nothing else can be asked
# Ray ends agents within a second or two. Where a network is cut it cannot, and they end themselves.
ABANDONED_SECONDS = 30.0
CODE_SECONDS = 30.0
DRAIN_SECONDS = 2.0  # for the last words of a rank, whose children may hold its pipes


@dataclass(frozen=True)
class Heard:
    """A line that a rank wrote to its event channel or its log, or how it ended."""

    rank: int
    kind: Literal["event", "log", "end"]
    line: bytes = b""
    status: int = 0


class Agent:
    """Ranks of one node."""

    def __init__(self) -> None:
        self._ranks: list[subprocess.Popen[bytes]] = []
        self._heard: queue.Queue[Heard] = queue.Queue()
        self._asked_at = time.monotonic()
        threading.Thread(target=self._end_when_abandoned, daemon=True).start()

    def place(self, factories: Sequence[str]) -> Place:
        """Where this is, and which code is here."""
        import ray

        context = ray.get_runtime_context()
        gpus = context.get_accelerator_ids().get("GPU", [])
        with socket.socket() as probe:
            probe.bind(("", 0))
            port = probe.getsockname()[1]
        address = ray.util.get_node_ip_address()
        code, problem = _code_of_ranks(factories)
        return Place(address=address, port=port, gpus=tuple(gpus), code=code, problem=problem)

    def start(self, spec: bytes, environments: Sequence[Mapping[str, str]]) -> list[int]:
        """Start a rank for each environment; their process ids."""
        import ray

        inherited = {
            **allocator_variables(os.environ),
            **os.environ,
            **interface_variables(ray.util.get_node_ip_address()),
            "PYTHONUNBUFFERED": "1",
        }
        for environment in environments:
            self._ranks.append(_start(spec, inherited | dict(environment)))
            rank, process = int(environment["RANK"]), self._ranks[-1]
            threading.Thread(target=self._follow, args=(rank, process), daemon=True).start()
        return [process.pid for process in self._ranks]

    def hear(self) -> list[Heard]:
        """What was said since the last call; waits a little if nothing was."""
        self._asked_at = time.monotonic()
        heard: list[Heard] = []
        try:
            heard.append(self._heard.get(timeout=HEAR_SECONDS))
            while True:
                heard.append(self._heard.get_nowait())
        except queue.Empty:
            return heard

    def terminate(self) -> None:
        """Ask the ranks to save and to end."""
        for process in self._ranks:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)

    def _follow(self, rank: int, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        readers = [
            threading.Thread(target=self._read, args=(rank, "event", process.stdout), daemon=True),
            threading.Thread(target=self._read, args=(rank, "log", process.stderr), daemon=True),
        ]
        for reader in readers:
            reader.start()
        status = process.wait()
        for reader in readers:
            reader.join(DRAIN_SECONDS)
        self._heard.put(Heard(rank, "end", status=status))

    def _read(self, rank: int, kind: Literal["event", "log"], pipe: IO[bytes]) -> None:
        for line in pipe:
            self._heard.put(Heard(rank, kind, line))

    def _end_when_abandoned(self) -> None:
        while time.monotonic() - self._asked_at < ABANDONED_SECONDS:
            time.sleep(1)
        os._exit(PARENT_GONE_STATUS)  # ranks read end-of-file


def training_code(factories: Sequence[str]) -> str:
    """Version of the code that ranks run, and of what they compute with."""
    return code_version("modelyard.train", ["torch", "numpy"], sorted(factories))


def _code_of_ranks(factories: Sequence[str]) -> tuple[str, str]:
    """As a process says that is started as ranks are, or why it cannot.

    Ray adds folders of the process that asked to where this one imports from; ranks do not have them.
    """
    command = [sys.executable, "-m", "modelyard.train.ray_agent", *factories]
    said = subprocess.run(command, capture_output=True, text=True, timeout=CODE_SECONDS, check=False)
    if said.returncode:
        return "", (said.stderr.strip().splitlines() or [f"status {said.returncode}"])[-1]
    return said.stdout.strip(), ""


def _start(spec: bytes, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """A rank reads its spec as a file; one in memory leaves nothing behind, however this process ends."""
    descriptor = os.memfd_create("spec")
    with os.fdopen(descriptor, "wb") as file:
        file.write(spec)
        file.flush()
        return subprocess.Popen(
            [sys.executable, "-m", "modelyard.train.worker", f"/dev/fd/{descriptor}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=[descriptor],
            env=environment,
        )


if __name__ == "__main__":
    print(training_code(sys.argv[1:]))
