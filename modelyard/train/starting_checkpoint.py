"""A checkpoint of another training, to begin with: its weights, taken in as an artifact before a rank is started.

What a training keeps of its checkpoints moves on while it goes; a copy of the weights, named by the digests of the files
that they came from, stays. Optimizer state, random streams and progress are left behind.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Attempt, Catalog, Origin, Work
from modelyard.errors import ConfigError, DataError, NotFound
from modelyard.models.weights import MAX_SHARD_BYTES, StoredWeights, fetch_weights, written
from modelyard.train.checkpoints import DIVIDER, CheckpointPointer, Checkpoints
from modelyard.train.config import TrainConfig
from modelyard.train.sections import CheckpointConfig

if TYPE_CHECKING:
    from torch import nn

FIELD = "train.init.checkpoint"
POINTER = re.compile(r"^\d{8}-\d{12}$")
SHOWN = 3
Shapes = Mapping[str, Sequence[int]]


def weights_of(
    catalog: Catalog, config: TrainConfig, origin: Origin, max_shard_bytes: int = MAX_SHARD_BYTES
) -> ArtifactRef | None:
    """The weights of the checkpoint that the config names, as an artifact; None where it names none. Where that training
    keeps a moving average, it is the average, as it would be published.

    Raises:
        NotFound: there is no such checkpoint, or one of its files is gone.
        DataError: its pointer cannot be read.
        DigestMismatch: one of its files is not what was saved; names it.
    """
    if not config.init.checkpoint:
        return None
    folder, name = _folder_and_name(config.init.checkpoint)
    shelf = Checkpoints(catalog.store, folder, CheckpointConfig())
    pointer = _pointer(shelf, name)

    def build(attempt: Attempt) -> None:
        from modelyard.train.snapshots import PublishedWeights  # torch: not needed where the artifact is found

        shelf.fetch(pointer, attempt.scratch / "checkpoint")
        shapes = pointer.progress["shapes"]
        weights = PublishedWeights(attempt.scratch / "checkpoint", shapes)
        for name in written(weights, attempt.scratch, max_shard_bytes):
            attempt.add(name, attempt.scratch / name)
        attempt.facts.update(shapes=shapes, step=pointer.step)
        attempt.input_uris["checkpoint"] = f"{folder}/{pointer.name}{DIVIDER}"

    digests = {name: entry.sha256 for name, entry in pointer.files.items()}
    work = Work(kind="pretrained", config={"checkpoint": digests}, inputs={}, code_version="1")
    return catalog.produce(work, build, origin).ref


def _folder_and_name(address: str) -> tuple[str, str]:
    """The folder of checkpoints, and the one that is meant; empty: the newest."""
    folder, _, last = address.rstrip("/").rpartition("/")
    name = last.removesuffix(DIVIDER)
    return (folder, name) if POINTER.match(name) else (address.rstrip("/"), "")


def _pointer(shelf: Checkpoints, name: str) -> CheckpointPointer:
    readable = {pointer.name: pointer for pointer in shelf.pointers()}
    damaged = {uri.rpartition("/")[2].removesuffix(DIVIDER): uri for uri in shelf.damaged()}
    known = sorted(readable.keys() | damaged.keys())
    chosen = name or (known[-1] if known else "")
    others = f"; others there: {', '.join(sorted(readable.keys() - {chosen}))}" if readable.keys() - {chosen} else ""
    if chosen in damaged:
        raise DataError(f"{FIELD}: {damaged[chosen]} cannot be read: it is truncated, or no checkpoint{others}")
    if chosen not in readable:
        asked = f"{shelf.folder}/{name}" if name else shelf.folder
        hint = others or "; the tag modelyard.checkpoints of a training's run says where its own are"
        raise NotFound(f"{FIELD}: there is no checkpoint {asked}{hint}")
    return readable[chosen]


def require_same_shapes(catalog: Catalog, weights: ArtifactRef, network: nn.Module) -> None:
    """Refuse weights of another network; this one may be on torch's meta device.

    Raises:
        ConfigError: names the weights that differ, with both shapes.
    """
    saved: Shapes = catalog.manifest(weights).content.facts["shapes"]
    own = {name: list(value.shape) for name, value in network.state_dict().items()}
    different = [name for name in sorted(saved.keys() | own.keys()) if saved.get(name) != own.get(name)]
    if not different:
        return
    listed = "; ".join(
        f"{name} is {saved.get(name, 'missing')} there and {own.get(name, 'missing')} here"
        for name in different[:SHOWN]
    )
    more = f"; and {len(different) - SHOWN} more" if len(different) > SHOWN else ""
    raise ConfigError(FIELD, f"the checkpoint is of another network: {listed}{more}; make train.model the same")


def load_(network: nn.Module, catalog: Catalog, weights: ArtifactRef, folder: Path) -> nn.Module:
    """The network with a checkpoint's weights in it.

    Raises:
        ConfigError: it is another network's.
        DigestMismatch: the weights are not what was taken in.
    """
    require_same_shapes(catalog, weights, network)
    fetch_weights(catalog, weights, folder)
    network.load_state_dict(StoredWeights(folder).tensors())
    return network
