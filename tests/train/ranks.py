"""Real ranks that stay: started once, they run one test's function after another in one gloo group.

A launched group costs seconds; what is about arithmetic needs ranks, not a launcher.
"""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

ANSWER_SECONDS = 60
FIRST_ANSWER_SECONDS = 200  # each rank imports torch and the tests first: on a busy machine most of a minute


class Ranks:
    """A group of rank processes. One in which a rank failed is over: others may hang in a collective, or answer later,
    when the next test asks. That test gets a new group."""

    def __init__(self, num_ranks: int, meeting_point: Path) -> None:
        self._num_ranks, self._meeting_point = num_ranks, meeting_point
        self._num_starts = 0
        self._start()

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What ``function(*arguments)`` returns on each rank; a rank's exception fails the test with its traceback."""
        if not self._processes:
            self._start()
        try:
            return self._answers(function, *arguments)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()
        self._processes = []

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        pipes = [context.Pipe() for _ in range(self._num_ranks)]
        self._pipes = [mine for mine, _ in pipes]
        self._num_starts += 1
        self._bound_seconds = FIRST_ANSWER_SECONDS
        meeting_point = f"{self._meeting_point}-{self._num_starts}"
        self._processes = [
            context.Process(target=_serve, args=(theirs, rank, self._num_ranks, meeting_point), daemon=True)
            for rank, (_, theirs) in enumerate(pipes)
        ]
        for process in self._processes:
            process.start()

    def _answers(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        for pipe in self._pipes:
            pipe.send((function, arguments))
        answers: dict[Connection, Any] = {}
        while waiting := [pipe for pipe in self._pipes if pipe not in answers]:
            ready = wait(waiting, self._bound_seconds)
            assert ready, f"rank {self._pipes.index(waiting[0])} does not answer"
            for pipe in waiting:
                if pipe in ready:
                    # At once: the others may wait for a rank that failed.
                    failure, answers[pipe] = pipe.recv()
                    assert failure is None, failure
        self._bound_seconds = ANSWER_SECONDS
        return [answers[pipe] for pipe in self._pipes]


@contextmanager
def ranks(num_ranks: int, folder: Path) -> Generator[Ranks]:
    group = Ranks(num_ranks, folder / f"ranks-{num_ranks}")
    try:
        yield group
    finally:
        group.stop()


def _serve(pipe: Connection, rank: int, num_ranks: int, meeting_point: str) -> None:
    import torch
    from torch import distributed

    torch.set_num_threads(1)
    store = distributed.FileStore(meeting_point, num_ranks)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=num_ranks)
    while True:
        function, arguments = pipe.recv()
        try:
            pipe.send((None, function(*arguments)))
        except BaseException:  # noqa: BLE001 - told to the test
            pipe.send((traceback.format_exc(), None))
