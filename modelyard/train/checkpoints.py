"""Resumable training state in the bucket, seen as files. What is in them is `snapshots.py`'s.

    <folder>/fences/<fence>                          one number for each group that ever trained here, create-only
    <folder>/<fence>-<step>/...                      tensors as safetensors, written by every rank
    <folder>/<fence>-<step>.json                     pointer: put create-only once everything behind it is durable

Training goes on from the newest pointer, ordered by fence, then step. A group that was replaced has a lower fence:
whatever it still publishes sorts below what its successor does, and it ends at its next attempt. Nothing here is a
pickle, and no byte is used before its sha256 was compared with the pointer's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from modelyard.artifacts import FileEntry, FileName, Frozen
from modelyard.catalog import file_sha256
from modelyard.errors import DigestMismatch, NotFound, TrainingTakenOver
from modelyard.storage import Store
from modelyard.train.sections import CheckpointConfig

PARALLEL_FILES = 8
DIVIDER = ".json"


class CheckpointPointer(Frozen):
    """The commit record of one checkpoint.

    Attributes:
        step: optimizer steps done.
        fence: number of the group that wrote it.
        score: what the kept validation is ordered by, more is better; None where none was made at this step.
        files: name below the checkpoint's folder -> size and sha256.
        progress: everything that is not a tensor, as `modelyard.train.progress.Progress` writes it.
    """

    step: int = Field(ge=0)
    fence: int = Field(ge=0)
    score: tuple[float, float] | None = None
    files: dict[FileName, FileEntry]
    progress: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.fence:08d}-{self.step:012d}"


class Checkpoints:
    """The checkpoints of one training run, as one group of ranks sees them."""

    def __init__(self, store: Store, folder: str, config: CheckpointConfig) -> None:
        self._store = store
        self._folder = folder
        self._config = config
        self._known: dict[str, CheckpointPointer] = {}

    # -- fences ---------------------------------------------------------------------------------------

    def new_fence(self) -> int:
        """A number above every other group's; from here on those that have a lower one cannot publish."""
        fence = self._highest_fence() + 1
        while not self._store.put_new(self._fence_uri(fence), b""):
            fence += 1
        return fence

    def _highest_fence(self) -> int:
        last = self._store.last(f"{self._folder}/fences")
        return int(last.uri.rpartition("/")[2]) if last else 0

    def _fence_uri(self, fence: int) -> str:
        return f"{self._folder}/fences/{fence:08d}"

    # -- writing --------------------------------------------------------------------------------------

    def upload(self, name: str, folder: Path) -> dict[str, FileEntry]:
        """Send every file below a local folder; one rank's part of the checkpoint called ``name``."""
        paths = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
        with ThreadPoolExecutor(PARALLEL_FILES) as pool:
            entries = pool.map(
                lambda item: self._upload_one(f"{self._folder}/{name}/{item[0]}", item[1]), paths.items()
            )
            return dict(zip(paths, entries, strict=True))

    def _upload_one(self, uri: str, path: Path) -> FileEntry:
        entry = FileEntry(size=path.stat().st_size, sha256=file_sha256(path))
        self._store.upload(path, uri)
        return entry

    def publish(self, pointer: CheckpointPointer) -> str:
        """Make a checkpoint visible, once its files are durable, then forget those that need not stay; its URI.

        Raises:
            TrainingTakenOver: a newer group works on the same training.
        """
        newest = self._highest_fence()
        if newest > pointer.fence:
            raise TrainingTakenOver(
                f"another group (fence {newest}) goes on with this training; this one (fence {pointer.fence}) ends"
            )
        uri = f"{self._folder}/{pointer.name}{DIVIDER}"
        # "There already" is the reply to an earlier try that was lost: nobody else has this fence.
        self._store.put_new(uri, pointer.model_dump_json().encode())
        self._known[uri] = pointer
        self._forget_old()
        return uri

    def _forget_old(self) -> None:
        """Keep the last k and the best m; pointers go first, for one that dangles would stop a resume."""
        objects = [info.uri for info in self._store.list(self._folder) if "/fences/" not in info.uri]
        pointers = {uri: self._read(uri) for uri in objects if uri.endswith(DIVIDER)}
        stay = {self._stem(uri) for uri in kept_pointers(pointers, self._config)}
        gone = [uri for uri in objects if self._stem(uri) not in stay and self._stem(uri) < max(stay, default="")]
        self._store.delete(uri for uri in gone if uri.endswith(DIVIDER))
        self._store.delete(uri for uri in gone if not uri.endswith(DIVIDER))

    def _stem(self, uri: str) -> str:
        return uri.removeprefix(f"{self._folder}/").partition("/")[0].removesuffix(DIVIDER)

    # -- reading --------------------------------------------------------------------------------------

    def pointers(self) -> list[CheckpointPointer]:
        """Every readable pointer, newest first."""
        uris = [info.uri for info in self._store.list(self._folder) if info.uri.endswith(DIVIDER)]
        return [pointer for uri in sorted(uris, reverse=True) if (pointer := self._read(uri))]

    def damaged(self) -> list[str]:
        """URIs of pointers that cannot be read."""
        uris = [info.uri for info in self._store.list(self._folder) if info.uri.endswith(DIVIDER)]
        return [uri for uri in uris if self._read(uri) is None]

    def fetch(self, pointer: CheckpointPointer, folder: Path) -> None:
        """Download a checkpoint's files, each verified.

        Raises:
            DigestMismatch: a file is not what was saved.
            NotFound: a file is gone.
        """
        with ThreadPoolExecutor(PARALLEL_FILES) as pool:
            list(pool.map(lambda item: self._fetch_one(pointer, *item, folder), pointer.files.items()))

    def _fetch_one(self, pointer: CheckpointPointer, name: str, entry: FileEntry, folder: Path) -> None:
        uri, path = f"{self._folder}/{pointer.name}/{name}", folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self._store.download(uri, path)
        actual = file_sha256(path)
        if actual != entry.sha256:
            raise DigestMismatch(uri, entry.sha256, actual)

    def _read(self, uri: str) -> CheckpointPointer | None:
        if uri not in self._known:
            try:
                self._known[uri] = CheckpointPointer.model_validate_json(self._store.get(uri))
            except (ValidationError, NotFound):
                return None
        return self._known[uri]

    @property
    def folder(self) -> str:
        return self._folder


def kept_pointers(pointers: Mapping[str, CheckpointPointer | None], config: CheckpointConfig) -> Sequence[str]:
    """URIs of the newest ``keep_last`` and the best ``keep_best``; of equal scores the earlier step is better."""
    readable = {uri: pointer for uri, pointer in sorted(pointers.items()) if pointer}
    # A step that a later group saved again counts once, as that group's: the first may have been found damaged.
    scored = {pointer.step: (pointer.score, uri) for uri, pointer in readable.items() if pointer.score}
    ranked = sorted(scored, key=lambda step: (-scored[step][0][0], -scored[step][0][1], step))
    return [*list(readable)[-config.keep_last :], *(scored[step][1] for step in ranked[: config.keep_best])]


def sha256_of(*parts: bytes) -> str:
    """Digest of bytes one after the other, 16 hexadecimal digits."""
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(part)
    return hashed.hexdigest()[:16]
