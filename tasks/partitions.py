"""Partitions of a data set as tasks: whoever prepares them, each share of them is seen while it is at work."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from functools import partial
from typing import Any, cast
from uuid import UUID

from prefect import get_run_logger, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture, wait
from prefect.states import Cancelled, State
from prefect.transactions import CommitMode, transaction

from modelyard.preprocess.crews import Crew, Share
from tasks.policy import BACKOFF, JITTER, RETRIES, is_transient

COUNT_SECONDS = 30.0  # to tell Prefect of one share: a bar that is not full is no reason to wait longer


@task(name="prepare-partitions", task_run_name="{name}", retries=RETRIES, retry_delay_seconds=BACKOFF,
      retry_jitter_factor=JITTER, retry_condition_fn=is_transient, cache_policy=NO_CACHE)  # fmt: skip
def prepare_share(name: str, work: Callable[[], None]) -> State[None] | None:  # noqa: ARG001 (of the task run)
    """Wait until a share of the partitions is prepared; a retry does only what is not there yet."""
    began = time.monotonic()
    try:
        work()
    except CancelledError:
        return Cancelled(message="another share failed")
    get_run_logger().info("prepared in %.1f s", time.monotonic() - began)
    return None


class ShownShares:
    """A spread of which Prefect shows each share as a task run, and a progress bar of all of them.

    What is at work at a time is on the flow's own task runner: its threads only wait for the crew, whose members need not
    know Prefect.
    """

    def __init__(self) -> None:
        self._num_done = 0
        self._counting = threading.Lock()
        self._progress: UUID | None = None
        self._failed: list[PrefectFuture[Any]] = []

    def __call__(self, crew: Crew, shares: Sequence[Share]) -> None:
        """See `modelyard.preprocess.crews.in_threads`."""
        # Each share stays made, whatever becomes of the stage: else Prefect would call them all rolled back.
        with transaction(commit_mode=CommitMode.EAGER):
            self._hand_out(crew, shares)

    def _hand_out(self, crew: Crew, shares: Sequence[Share]) -> None:
        if len(shares) > 1:
            self._progress = cast("UUID", create_progress_artifact(0.0, key="preprocess-progress", description=""))
        if crew.at_once == 1:  # in this thread, which a cancelled run can interrupt
            for share in shares:
                prepare_share(share.name, partial(crew.carry_out, share.preparations))
                self._count(len(shares))
            return
        try:
            begun = self._carried_out(crew, shares)
        except BaseException:
            crew.cancel()
            raise
        for one in [*self._failed, *begun]:
            one.result()

    def _carried_out(self, crew: Crew, shares: Sequence[Share]) -> list[PrefectFuture[Any]]:
        """As many at a time as keep the crew at work; none behind one that failed. All of them are over, and counted."""
        free = threading.Semaphore(crew.at_once)

        def end(future: PrefectFuture[Any]) -> None:
            try:
                future.wait()
                if future.state.is_completed():
                    self._count(len(shares))
                else:
                    self._failed.append(future)
                    crew.cancel()
            finally:
                free.release()

        begun: list[PrefectFuture[Any]] = []
        for share in shares:
            free.acquire()
            if self._failed:
                free.release()
                break
            begun.append(prepare_share.submit(share.name, partial(crew.carry_out, share.preparations)))
            begun[-1].add_done_callback(end)
        wait(begun)
        for _ in range(crew.at_once):  # of those who counted the last ones
            free.acquire(timeout=COUNT_SECONDS)
        return begun

    def _count(self, total: int) -> None:
        with self._counting:  # one after the other, or the bar would go back
            self._num_done += 1
            if self._progress:
                words = f"{self._num_done} of {total} shares of the partitions are prepared"
                update_progress_artifact(self._progress, progress=100.0 * self._num_done / total, description=words)
