"""From what a rank is told to its trainer: the data, the network and, where one is named, the teacher."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from modelyard.artifacts import ArtifactRef, Frozen
from modelyard.catalog import Catalog
from modelyard.datasets import Dataset
from modelyard.errors import ConfigError
from modelyard.models.build import build_model, load_model
from modelyard.models.config import MODEL_FILE, WEIGHTS_FILE
from modelyard.task_kinds import task_kind
from modelyard.train.checkpoints import Checkpoints
from modelyard.train.config import TrainConfig
from modelyard.train.distillation import Teacher
from modelyard.train.events import RankEvent
from modelyard.train.loop import Objective, Trainer
from modelyard.train.precision import Precision
from modelyard.train.starting import TEACHER_FIELD, Parent
from modelyard.train.stepper import Split


class RankSpec(Frozen):
    """What a rank is told, as a file: the same for all of them."""

    dataset: ArtifactRef
    config: TrainConfig
    checkpoints: str
    init: ArtifactRef | None = None
    teacher: ArtifactRef | None = None


def assemble(spec: RankSpec, catalog: Catalog, device: torch.device, emit: Callable[[RankEvent], None]) -> Trainer:
    """The trainer of this rank, in the process group that it is in.

    Raises:
        ConfigError: the network's outputs do not fit the target, or it has no zeros to keep.
        DataError, DigestMismatch: files that are not what they should be.
    """
    with tempfile.TemporaryDirectory(prefix="modelyard-rank-") as scratch:
        dataset = Dataset.fetch(catalog, spec.dataset, Path(scratch) / "data", ["train", "validation"])
        train, validation = Split.of(*dataset.load("train")), Split.of(*dataset.load("validation"))
        teacher = None
        if spec.teacher:
            parent = Parent.read(catalog, spec.teacher, TEACHER_FIELD)
            teacher = _teacher(spec, catalog, parent, dataset, device, Path(scratch) / "teacher")
            train = _seen_by(parent, dataset, train)
        network = _network(spec, catalog, dataset, Path(scratch) / "init")
    kind = task_kind(dataset.target.task)
    require_outputs(network, train, kind.output_width(dataset.target))
    return Trainer(
        spec.config,
        network,
        device,
        train=train,
        validation=validation,
        objective=Objective(
            loss=kind.loss,
            metric=spec.config.stop.metric or kind.headline,
            new_metric=lambda: kind.metric(dataset.target),
        ),
        checkpoints=Checkpoints(catalog.store, spec.checkpoints, spec.config.checkpoint),
        emit=emit,
        teacher=teacher,
    )


def _network(spec: RankSpec, catalog: Catalog, dataset: Dataset, folder: Path) -> nn.Module:
    """The starting model's with its weights, or the configured one with random weights."""
    if spec.init:
        return _fetched(catalog, spec.init, folder)
    torch.manual_seed(spec.config.seed)  # initial weights do not depend on the number of ranks
    width = task_kind(dataset.target.task).output_width(dataset.target)
    return build_model(spec.config.model, dataset.transform.width, width)


def _teacher(
    spec: RankSpec, catalog: Catalog, parent: Parent, dataset: Dataset, device: torch.device, folder: Path
) -> Teacher:
    own, its = dataset.target, parent.target
    return Teacher(
        _fetched(catalog, parent.ref, folder),
        device,
        spec.config.distill,
        loss=task_kind(own.task).loss,
        precision=Precision(spec.config.precision, device),
        scale=its.scale / own.scale,
        shift=(its.mean - own.mean) / own.scale,
    )


def _seen_by(teacher: Parent, dataset: Dataset, train: Split) -> Split:
    """The training split, with the teacher's own inputs where its transform was fitted on other rows."""
    if teacher.transform == dataset.transform:
        return train
    inputs = [teacher.transform.apply_frame(frame) for frame in dataset.frames("train")]
    seen = torch.from_numpy(np.concatenate(inputs))
    return Split(features=train.features, targets=train.targets, teacher_features=seen)


def _fetched(catalog: Catalog, ref: ArtifactRef, folder: Path) -> nn.Module:
    catalog.fetch(ref, folder, [MODEL_FILE, WEIGHTS_FILE])
    return load_model(folder)


def require_outputs(network: nn.Module, train: Split, width: int) -> None:
    """Refuse a network whose outputs do not fit the target, before it is trained: a label would lie out of range.

    Raises:
        ConfigError: names both shapes.
    """
    was_training, generators = network.training, torch.get_rng_state()
    with torch.no_grad():
        shape = tuple(network.eval()(train.features[:2]).shape)
    torch.set_rng_state(generators)
    network.train(was_training)
    if shape[1:] != (width,):
        expected = f"(n, {width})"
        raise ConfigError("train.model", f"the network's outputs are {('n', *shape[1:])}, the target needs {expected}")
