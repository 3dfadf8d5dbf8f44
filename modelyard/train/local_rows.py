"""A data set as ranks read it, on the disk of their machine: made once, shared by its ranks and by later runs, bounded.

    <folder>/<name>/rows.json       what its files are, with size and sha256
    <folder>/<name>/...             the files; ranks map them, so that their rows are in memory once, and need not fit
    <folder>/<name>.lock            held by who makes or checks it

Nothing in here is the only copy of anything: a damaged folder is made anew from the bucket.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
import warnings
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import psutil
import torch

from modelyard.errors import DataError, MachineBusy, MachineFull
from modelyard.train.rows import Split

logger = logging.getLogger(__name__)

INDEX_FILE, CHECKED_FILE = "rows.json", "checked-by"
PARTIAL = ".partial"
POLL_SECONDS = 0.05
STALL_SECONDS = 120.0  # without coming on, whoever makes or checks a folder is taken for hung
SIGN_SECONDS = 5.0
SPARE_BYTES = 2**28  # left free on the disk for everybody else
CHUNK_BYTES = 2**22

Arrays = tuple[np.ndarray, ...]


class LocalRows:
    """Folders of prepared rows.

    Args:
        max_bytes: what all of them may take together. The one that is asked for is kept whatever its size; those that
            were not used for longest go first.
        sign_of_life: called every few seconds while something is made.
    """

    def __init__(self, folder: Path, max_bytes: int, sign_of_life: Callable[[], None] = lambda: None) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._sign_of_life = sign_of_life
        self._signed_at = 0.0
        self._lock: Path | None = None  # of the folder that is held

    def split(self, name: str, num_bytes: int, parts: Callable[[], Iterable[Arrays]]) -> Split:
        """Rows of a split, mapped from the disk.

        Args:
            name: of the folder; says everything that the rows depend on.
            num_bytes: about what they take.
            parts: makes them, some rows at a time: network input, encoded targets, and perhaps a teacher's input.

        Raises:
            DataError: there are none.
            MachineFull: the disk has no room for them.
            MachineBusy: another process makes them, and has not come on for two minutes.
        """
        folder = self.folder(name, num_bytes, lambda made: self._write(made, parts()))
        features, targets, *seen = [_mapped(path) for path in sorted(folder.glob("[0-9]-*"))]
        return Split(features=features, targets=targets, teacher_features=seen[0] if seen else None)

    def folder(self, name: str, num_bytes: int, make: Callable[[Path], object]) -> Path:
        """A folder as ``make`` fills it: found and checked, or made.

        Raises:
            MachineFull, MachineBusy: as for `split`; and what ``make`` raises.
        """
        folder = self._folder / name
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._held(name):
            if not self._is_sound(folder):
                self._make(folder, num_bytes, make)
            os.utime(folder)
        return folder

    def _is_sound(self, folder: Path) -> bool:
        """Its bytes are compared with their sha256 once for each group of ranks."""
        checked = folder / CHECKED_FILE
        with suppress(FileNotFoundError):
            if checked.read_text() == _group():
                return True
        index = folder / INDEX_FILE
        if not index.exists():
            return False
        if problem := self._problem(folder, json.loads(index.read_bytes())):
            logger.warning("%s: %s; making it again", folder, problem)
            return False
        checked.write_text(_group())
        return True

    def _problem(self, folder: Path, files: dict[str, dict[str, Any]]) -> str:
        for name, entry in files.items():
            path = folder / name
            if not path.exists() or path.stat().st_size != entry["size"]:
                return f"{name} is not whole"
            if self._sha256(path) != entry["sha256"]:
                return f"{name} is damaged"
        return ""

    def _make(self, folder: Path, num_bytes: int, make: Callable[[Path], object]) -> None:
        partial = folder.with_name(folder.name + PARTIAL)
        for old in (folder, partial):
            shutil.rmtree(old, ignore_errors=True)
        self._make_room(num_bytes, folder)
        partial.mkdir()
        try:
            make(partial)
            files = {
                str(path.relative_to(partial)): {"size": path.stat().st_size, "sha256": self._sha256(path)}
                for path in sorted(partial.rglob("*"))
                if path.is_file()
            }
            (partial / INDEX_FILE).write_text(json.dumps(files, indent=1))
            (partial / CHECKED_FILE).write_text(_group())
            partial.rename(folder)
        except OSError as failure:
            if failure.errno == errno.ENOSPC:
                raise MachineFull(
                    f"the disk of {self._folder} is full; free some of it, or set another MODELYARD_HOME"
                ) from failure
            raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _make_room(self, num_bytes: int, wanted: Path) -> None:
        """Delete what was not used for longest, until the folders keep their bound and the disk has room."""
        taken = {one: _size(one) for one in self._folder.iterdir() if one.is_dir() and one != wanted}
        for one in sorted(taken, key=_used_at):
            fits = sum(taken.values()) + num_bytes <= self._max_bytes
            if fits and shutil.disk_usage(self._folder).free >= num_bytes + SPARE_BYTES:
                return
            with self._lock_path(one.name.removesuffix(PARTIAL)).open("a") as file:
                if _is_locked(file):
                    shutil.rmtree(one, ignore_errors=True)  # who has mapped its files keeps them until it ends
                    del taken[one]
        free = shutil.disk_usage(self._folder).free
        if free < num_bytes + SPARE_BYTES:
            raise MachineFull(
                f"the rows to train on take about {num_bytes / 1e9:.1f} GB on the disk, and {self._folder} has"
                f" {free / 1e9:.1f} GB free; free some of it, or set another MODELYARD_HOME"
            )

    def _write(self, folder: Path, parts: Iterable[Arrays]) -> None:
        """Each array of the parts goes to a file of its own, whose name says type and shape of a row."""
        files: list[IO[bytes]] = []
        first: Arrays = ()
        try:
            for arrays in parts:
                if not files:
                    first = arrays
                    files = [(folder / _file_name(*at)).open("wb") for at in enumerate(arrays)]
                for file, array, model in zip(files, arrays, first, strict=True):
                    assert (array.dtype, array.shape[1:]) == (model.dtype, model.shape[1:]), "rows of one kind"
                    file.write(np.ascontiguousarray(array).data)
                self._come_on()
        finally:
            for file in files:
                file.close()
        if not files:
            raise DataError("a split to train with is empty")

    def _sha256(self, path: Path) -> str:
        found = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                found.update(chunk)
                self._come_on()
        return found.hexdigest()

    def _come_on(self) -> None:
        """Who holds a folder has done a part: those who wait for it see that."""
        if self._lock:
            os.utime(self._lock)
        self._sign()

    def _sign(self) -> None:
        if time.monotonic() - self._signed_at > SIGN_SECONDS:
            self._signed_at = time.monotonic()
            self._sign_of_life()

    @contextmanager
    def _held(self, name: str) -> Generator[None]:
        """Alone with a folder. Waits for who makes or checks it, as long as that one comes on."""
        partial, lock, began = self._folder / (name + PARTIAL), self._lock_path(name), time.time()
        with lock.open("a") as file:
            while not _is_locked(file):
                if time.time() - max([began, lock.stat().st_mtime, *_changes(partial)]) > STALL_SECONDS:
                    raise MachineBusy(
                        f"who makes or checks {self._folder / name} has not come on for {STALL_SECONDS:g} s"
                    )
                self._sign()
                time.sleep(POLL_SECONDS)
            self._lock = lock
            try:
                yield
            finally:
                self._lock = None

    def _lock_path(self, name: str) -> Path:
        return self._folder / f"{name}.lock"


def _is_locked(file: IO[str]) -> bool:
    """Lock a file until it is closed, unless somebody else holds it."""
    with suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _group() -> str:
    """This group of ranks: they have one parent."""
    parent = psutil.Process(os.getppid())
    return f"{parent.pid} {parent.create_time()}"


# Other processes delete and rename folders meanwhile.


def _changes(folder: Path) -> list[float]:
    with suppress(FileNotFoundError):
        return [path.stat().st_mtime for path in folder.rglob("*")]
    return []


def _size(folder: Path) -> int:
    with suppress(FileNotFoundError):
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return 0


def _used_at(folder: Path) -> float:
    with suppress(FileNotFoundError):
        return folder.stat().st_mtime
    return 0.0


def _file_name(number: int, array: np.ndarray) -> str:
    return "-".join([str(number), array.dtype.name, *map(str, array.shape[1:])])


def _mapped(path: Path) -> torch.Tensor:
    """A file of `_file_name` as a tensor that lies on the disk. It must not be written to: there is no page for that."""
    _, kind, *shape = path.name.split("-")
    rows = np.memmap(path, dtype=kind, mode="r").reshape(-1, *map(int, shape))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch says that it cannot be written to
        return torch.from_numpy(rows)
