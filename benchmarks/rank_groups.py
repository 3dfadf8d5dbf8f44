"""Processes of the ranks that are measured. Those of a contestant are started once and wait, idle, for its turns: what a
turn takes is then its work, not three seconds of imports.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import traceback
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from modelyard.settings import Settings
from modelyard.train import TrainConfig
from modelyard.train.allocator import allocator_variables

ANSWER_SECONDS = 300
Work = Callable[[Settings, TrainConfig, Any, Any, str], dict[str, float]]
Data = Callable[[int], tuple[Any, Any]]


class RankGroup:
    """Ranks in one gloo group, one thread each."""

    def __init__(self, num_ranks: int, meeting_point: Path) -> None:
        context = multiprocessing.get_context("spawn")
        pipes = [context.Pipe() for _ in range(num_ranks)]
        self._pipes = [mine for mine, _ in pipes]
        self._processes = [
            context.Process(target=_serve, args=(theirs, str(meeting_point), rank, num_ranks), daemon=True)
            for rank, (_, theirs) in enumerate(pipes)
        ]
        with _environment(allocator_variables(os.environ)):  # whoever is measured: what is compared is what they do
            for process in self._processes:
                process.start()

    def run(self, work: Work, settings: Settings, config: TrainConfig, data: tuple[Data, int]) -> dict[str, float]:
        """Have every rank work; what rank 0 measured."""
        name = uuid4().hex
        for pipe in self._pipes:
            pipe.send((work, settings, config, data, name))
        answers = []
        for rank, pipe in enumerate(self._pipes):
            assert pipe.poll(ANSWER_SECONDS), f"rank {rank} does not answer"
            failure, answer = pipe.recv()
            assert not failure, failure
            answers.append(answer)
        return answers[0]

    def stop(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()


class RankGroups:
    """The groups of one benchmark, by contestant; a context manager that leaves no process behind."""

    def __init__(self, settings: Settings, scratch: Path) -> None:
        self._settings, self._scratch = settings, scratch
        self._groups: dict[tuple[Work, int, str], RankGroup] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End every process; more may be asked for."""
        for group in self._groups.values():
            group.stop()
        self._groups.clear()

    def run(self, config: TrainConfig, work: Work, data: tuple[Data, int], name: str = "") -> dict[str, float]:
        """One turn of the contestant that this work, strategy and number of ranks are, or ``name`` besides."""
        key = (work, config.ranks, f"{config.strategy} {name}")
        if key not in self._groups:
            self._groups[key] = RankGroup(config.ranks, self._scratch / uuid4().hex)
        return self._groups[key].run(work, self._settings, config, data)


@contextmanager
def _environment(variables: Mapping[str, str]) -> Generator[None]:
    """For processes that are started meanwhile."""
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            del os.environ[name]


def _serve(pipe: Connection, meeting_point: str, rank: int, num_ranks: int) -> None:
    import torch
    from torch import distributed

    torch.set_num_threads(1)
    store = distributed.FileStore(meeting_point, num_ranks)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=num_ranks)
    while True:
        try:
            work, settings, config, (make, rows), name = pipe.recv()
        except EOFError:
            return
        try:
            features, targets = make(rows)
            torch.manual_seed(config.seed)
            found = work(settings, config, features, targets, name)
            distributed.barrier()
            gc.collect()  # what a turn leaves is no part of the next one's memory
            pipe.send(("", found))
        except Exception:  # noqa: BLE001 - told to whoever measures
            pipe.send((traceback.format_exc(), {}))
