"""Resumable training state in the bucket.

    <artifact folder>/checkpoints/<epoch>.json          pointer: put create-only once the state behind it is whole
    <artifact folder>/checkpoints/<epoch>-<id>.pt       tensors and plain values, read with ``weights_only=True``

The highest pointer is where training goes on. A training run is deterministic in its key, so two runs that race for
a pointer agree on what it stands for, and whichever wins is right for both.
"""

from __future__ import annotations

import hashlib
import io
import json
from typing import Any
from uuid import uuid4

import torch

from modelyard.artifacts import Frozen
from modelyard.errors import DigestMismatch
from modelyard.storage import Store

KEPT = 2


class CheckpointPointer(Frozen):
    """Where a checkpoint lies and what its bytes must hash to."""

    epoch: int
    uri: str
    sha256: str


class Checkpoints:
    """The checkpoints of one training run."""

    def __init__(self, store: Store, folder: str) -> None:
        self._store = store
        self._folder = folder

    def save(self, epoch: int, state: dict[str, Any]) -> str:
        """Write the state after ``epoch`` epochs, then its pointer; older ones beyond `KEPT` go."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        body = buffer.getvalue()
        uri = f"{self._folder}/{epoch:012d}-{uuid4().hex}.pt"
        self._store.put(uri, body)
        pointer = CheckpointPointer(epoch=epoch, uri=uri, sha256=hashlib.sha256(body).hexdigest())
        if not self._store.put_new(self._pointer_uri(epoch), pointer.model_dump_json().encode()):
            self._discard_unless_pointed_at(pointer)
        self._forget_old(epoch)
        return uri

    def latest(self) -> CheckpointPointer | None:
        """The newest checkpoint, or None before the first."""
        pointers = [info.uri for info in self._store.list(self._folder) if info.uri.endswith(".json")]
        return CheckpointPointer.model_validate(json.loads(self._store.get(max(pointers)))) if pointers else None

    def load(self, pointer: CheckpointPointer) -> dict[str, Any]:
        """The state behind a pointer, on the CPU.

        Raises:
            DigestMismatch: the bytes are not those that were saved.
        """
        body = self._store.get(pointer.uri)
        actual = hashlib.sha256(body).hexdigest()
        if actual != pointer.sha256:
            raise DigestMismatch(pointer.uri, pointer.sha256, actual)
        return torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)

    def _pointer_uri(self, epoch: int) -> str:
        return f"{self._folder}/{epoch:012d}.json"

    def _discard_unless_pointed_at(self, mine: CheckpointPointer) -> None:
        standing = CheckpointPointer.model_validate_json(self._store.get(self._pointer_uri(mine.epoch)))
        if standing.uri != mine.uri:
            self._store.delete([mine.uri])

    def _forget_old(self, newest: int) -> None:
        limit = f"{self._folder}/{max(newest - KEPT + 1, 0):012d}"
        old = [info.uri for info in self._store.list(self._folder) if info.uri < limit]
        # Pointers first: one that dangles would stop a resume.
        self._store.delete(uri for uri in old if uri.endswith(".json"))
        self._store.delete(uri for uri in old if not uri.endswith(".json"))
