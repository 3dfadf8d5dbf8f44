"""Going on from a checkpoint: the newest that is whole, or the one before it, or a sentence that says why not."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from modelyard.errors import ConfigError, DigestMismatch, NotFound, TrainingFailed
from modelyard.train.checkpoints import CheckpointPointer, Checkpoints
from modelyard.train.progress import Progress
from modelyard.train.snapshots import restore_, restore_local_

if TYPE_CHECKING:
    from modelyard.train.loop import Trainer


def resume_newest(trainer: Trainer, checkpoints: Checkpoints, warn: Callable[[str], None]) -> bool:
    """Put a trainer where its newest usable checkpoint was; False where there is none yet.

    Every rank calls this, and all of them take the same checkpoint.

    Raises:
        TrainingFailed: there are checkpoints, and none can be used.
        ConfigError: the checkpoint is of another network.
    """
    agreement = trainer.agreement
    leads = trainer.stepper.rank == 0
    pointers, damaged = agreement.shared((checkpoints.pointers(), checkpoints.damaged()) if leads else None)
    problems = [f"{uri}: the pointer cannot be read" for uri in damaged]
    for pointer in pointers:
        with tempfile.TemporaryDirectory(prefix="modelyard-resume-") as scratch:
            found = next(filter(None, agreement.all_of(_fetch(checkpoints, pointer, Path(scratch)))), "")
            if found:
                problems.append(found)
                continue
            _restore_(trainer, pointer, Path(scratch))
        for problem in problems:
            warn(f"going on from step {pointer.step}, for a newer checkpoint cannot be used: {problem}")
        return True
    if problems:
        raise TrainingFailed(
            f"no checkpoint in {checkpoints.folder} can be used; delete that folder to begin anew: {'; '.join(problems)}"
        )
    return False


def _fetch(checkpoints: Checkpoints, pointer: CheckpointPointer, folder: Path) -> str:
    """What keeps this rank from using a checkpoint; empty if nothing. A store that does not answer is raised."""
    try:
        checkpoints.fetch(pointer, folder)
    except (DigestMismatch, NotFound, SafetensorError) as failure:
        return str(failure)
    return ""


def _restore_(trainer: Trainer, pointer: CheckpointPointer, folder: Path) -> None:
    progress = Progress.from_json(pointer.progress)
    require_same_network(progress.shapes, trainer.progress.shapes)
    stepper = trainer.stepper
    restore_(stepper, folder)
    trainer.loss_sum.copy_(restore_local_(folder, stepper.device, stepper.streams))
    stepper.precision.load(progress.loss_scale)
    progress.world_size = stepper.world_size
    trainer.progress = progress


def require_same_network(saved: dict[str, list[int]], own: dict[str, list[int]]) -> None:
    """Refuse a checkpoint of another network, by the first weight that differs.

    Raises:
        ConfigError: names the weight and both shapes.
    """
    for name in sorted(saved.keys() | own.keys()):
        if saved.get(name) != own.get(name):
            raise ConfigError(
                "train.model",
                f"the checkpoint is of another network: {name} is {saved.get(name, 'missing')} there and"
                f" {own.get(name, 'missing')} here; a factory that changed needs another name or option",
            )
