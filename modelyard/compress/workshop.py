"""Work that may crash, hang or exhaust memory, in processes that can be killed: the side of the process that asks.

One helper process has imported torch and forks a child for each job (a fork takes milliseconds, the imports seconds).
A child that dies takes nothing along but its own job.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import modelyard.errors
from modelyard.errors import ConversionFailed, HelperLost, PermanentError

REQUEST_FILE, OUTCOME_FILE, LOG_FILE = "request.json", "outcome.json", "log.txt"
START_SECONDS = 120.0
GRACE_SECONDS = 5.0
LOG_TAIL = 300  # characters of a dead child's last words that go into the reason


class Workshop:
    """Starts its helper process with the first job; `run` may be called from several threads."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._waiting: dict[int, Future[str]] = {}
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def run(
        self, job: str, request: Mapping[str, Any], folder: Path, seconds: float, cores: Sequence[int] | None = None
    ) -> dict[str, Any]:
        """Do one job in a process of its own.

        Args:
            job: a name in `modelyard.compress.jobs.JOBS`.
            request: what the job takes, as JSON.
            folder: the job's own; its request, outcome and log lie there.
            seconds: after which it is killed.
            cores: that it is pinned to; None: any.

        Returns:
            What the job returned.

        Raises:
            PermanentError: what the job raised; `ConversionFailed` where it crashed, hung or raised anything else.
            HelperLost: the helper process went away.
        """
        folder.mkdir(parents=True, exist_ok=True)
        (folder / REQUEST_FILE).write_text(json.dumps(request))
        (folder / OUTCOME_FILE).unlink(missing_ok=True)
        ended = self._submit({"job": job, "folder": str(folder), "seconds": seconds, "cores": cores})
        try:
            end = ended.result(seconds + START_SECONDS)
        except TimeoutError:
            self.close()
            raise HelperLost("the helper process of compression does not answer") from None
        if end != "done":
            raise ConversionFailed(f"its process {end}{_last_words(folder)}")
        return _opened(json.loads((folder / OUTCOME_FILE).read_text()))

    def close(self) -> None:
        """End the helper process with all its children; returns within a few seconds, and may be called again."""
        with self._lock:
            process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        with suppress(BrokenPipeError):
            process.stdin.close()
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(GRACE_SECONDS)

    def _submit(self, order: dict[str, Any]) -> Future[str]:
        ended: Future[str] = Future()
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._process = self._start()
            number = next(self._numbers)
            self._waiting[number] = ended
            assert self._process.stdin is not None
            try:
                self._process.stdin.write(json.dumps({**order, "number": number}).encode() + b"\n")
                self._process.stdin.flush()
            except BrokenPipeError:
                raise HelperLost("the helper process of compression ended") from None
        return ended

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", "modelyard.compress.helper"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=0,
            # Threads must not exist where a process forks, and OpenBLAS starts them at import.
            env={
                **os.environ,
                "OPENBLAS_NUM_THREADS": "1",
                "PYTHONPATH": os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path),
            },
        )
        threading.Thread(target=self._listen, args=[process], daemon=True).start()
        return process

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        """Hand each end of a job to the thread that waits for it."""
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                told = json.loads(line)
                if waiting := self._waiting.pop(told["number"], None):
                    waiting.set_result(told["end"])
        with self._lock:
            left, self._waiting = self._waiting, {}
        for waiting in left.values():
            waiting.set_exception(HelperLost("the helper process of compression ended"))


@cache
def shared_workshop() -> Workshop:
    """This process's own; its helper ends when the process does."""
    return Workshop()


def _opened(outcome: dict[str, Any]) -> dict[str, Any]:
    if "error" not in outcome:
        return outcome["result"]
    kind = getattr(modelyard.errors, outcome["error"], None)
    simple = isinstance(kind, type) and issubclass(kind, PermanentError) and kind.__init__ is PermanentError.__init__
    raise (kind if simple else ConversionFailed)(outcome["message"])


def _last_words(folder: Path) -> str:
    """What a dead child wrote last, if anything."""
    log = folder / LOG_FILE
    words = log.read_text(errors="replace").strip()[-LOG_TAIL:] if log.exists() else ""
    return f"; its last words: {' '.join(words.split())}" if words else ""
