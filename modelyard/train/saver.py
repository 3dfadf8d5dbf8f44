"""Checkpoints are written beside training: one at a time, within a bound, and whatever goes wrong is said.

Training waits only for the copy of its tensors. Writing, hashing, uploading and publishing happen in a thread with a
process group of its own, so its collectives never meet those of training. A bucket that is away for a while is waited for
within the same bound, while training goes on.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from torch import distributed

from modelyard.artifacts import FileEntry
from modelyard.errors import CheckpointFailed, MachineFull, ModelyardError, StoreUnavailable
from modelyard.train.checkpoints import CheckpointPointer, Checkpoints
from modelyard.train.progress import Progress
from modelyard.train.snapshots import Tensors, num_bytes, write

POLL_SECONDS = 0.5
RETRY_SECONDS = 2.0
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Everything one rank adds to a checkpoint, on the CPU."""

    progress: Progress
    score: tuple[float, float] | None
    tensors: Tensors
    local: Tensors


class Saver:
    """Saves snapshots of one group; every rank has one and calls the same methods in the same order."""

    def __init__(
        self,
        checkpoints: Checkpoints,
        fence: int,
        timeout_seconds: float,
        on_saved: Callable[[Progress, str], None],
        warn: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._checkpoints = checkpoints
        self._fence = fence
        self._timeout_seconds = timeout_seconds
        self._on_saved, self._warn = on_saved, warn
        self._group = distributed.new_group(backend="gloo", timeout=timedelta(seconds=timeout_seconds))
        self._thread: threading.Thread | None = None
        self._began = 0.0
        self._failure: BaseException | None = None

    @property
    def is_busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def start(self, snapshot: Snapshot) -> None:
        """Begin to save; the one before must have ended (`wait`)."""
        assert not self.is_busy
        self._began = time.monotonic()
        self._thread = threading.Thread(target=self._run, args=(snapshot,), name="checkpoint", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Notice a save that failed or takes too long.

        Raises:
            CheckpointFailed: with the reason; the checkpoint before stands.
        """
        if self._failure is not None:
            if isinstance(self._failure, ModelyardError):
                raise self._failure
            raise CheckpointFailed(f"a checkpoint could not be saved: {self._failure}") from self._failure
        if self.is_busy and time.monotonic() - self._began > self._timeout_seconds:
            raise CheckpointFailed(
                f"a checkpoint was not saved within train.checkpoint.timeout_seconds={self._timeout_seconds:g};"
                " is the bucket slow or out of reach?"
            )

    def wait(self, alive: Callable[[], None] = lambda: None) -> None:
        """Until nothing is being saved; ``alive`` is called now and then.

        Raises:
            CheckpointFailed: as `check`.
        """
        while self._thread is not None and self._thread.is_alive():
            self._thread.join(min(POLL_SECONDS, self._timeout_seconds))
            self.check()
            alive()
        self.check()

    def _run(self, snapshot: Snapshot) -> None:
        try:
            self._save(snapshot)
        except BaseException as failure:  # noqa: BLE001 - it is raised in the training thread
            self._failure = failure

    def _save(self, snapshot: Snapshot) -> None:
        progress = snapshot.progress
        pointer = CheckpointPointer(
            step=progress.step, fence=self._fence, score=snapshot.score, files={}, progress=progress.as_json()
        )
        folder = Path(tempfile.mkdtemp(prefix="modelyard-checkpoint-"))
        try:
            with _room(folder, num_bytes(snapshot.tensors) + num_bytes(snapshot.local)):
                write(snapshot.tensors, snapshot.local, folder, self._group)
            mine = self._while_away(lambda: self._checkpoints.upload(pointer.name, folder))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        files = self._of_all_ranks(mine)
        uri = [""]
        if distributed.get_rank() == 0:
            uri = [self._while_away(lambda: self._checkpoints.publish(pointer.model_copy(update={"files": files})))]
        # Nobody counts a checkpoint as saved before its pointer is.
        distributed.broadcast_object_list(uri, src=0, group=self._group)
        self._on_saved(progress, uri[0])

    def _while_away(self, do: Callable[[], Result]) -> Result:
        """What ``do`` gives once the store answers; its error, where that would be too late for this save."""
        said = False
        while True:
            try:
                return do()
            except StoreUnavailable as failure:
                left = self._began + self._timeout_seconds - time.monotonic()
                if left < 2 * RETRY_SECONDS:
                    raise
                if not said:
                    self._warn(f"a checkpoint waits for the bucket, {left:.0f} s more at most: {failure}")
                said = True
                time.sleep(RETRY_SECONDS)

    def _of_all_ranks(self, mine: dict[str, FileEntry]) -> dict[str, FileEntry]:
        parts: list[dict[str, FileEntry] | None] = [None] * distributed.get_world_size()
        distributed.all_gather_object(parts, mine, group=self._group)
        return {name: entry for part in parts if part for name, entry in part.items()}


@contextmanager
def _room(folder: Path, needed: int) -> Generator[None]:
    """A disk that has room for so many bytes, or the sentence that says how many it has; also where others fill it up
    meanwhile."""

    def require(free: int) -> None:
        if free < needed:
            raise MachineFull(
                f"this rank's part of a checkpoint takes {needed / 1e6:,.1f} MB on the disk before it is sent to the bucket,"
                f" and {folder.parent} has {free / 1e6:,.1f} MB free; free some of it, or set another TMPDIR"
            )

    require(shutil.disk_usage(folder).free)
    try:
        yield
    except BaseException:
        written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        require(shutil.disk_usage(folder).free + written)
        raise
