"""From what a rank is told to its trainer: the data, the network and, where one is named, the teacher."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import distributed, nn

from modelyard.artifacts import ArtifactRef, Frozen
from modelyard.catalog import Catalog
from modelyard.code_version import code_version
from modelyard.datasets import TARGET_FILE, Dataset
from modelyard.datasets import Split as SplitName
from modelyard.masking import Masker
from modelyard.models.build import build_model, load_model
from modelyard.models.config import MODEL_FILE, HuggingFaceConfig
from modelyard.models.weights import StoredWeights, fetch_weights
from modelyard.targets import encoded_targets
from modelyard.task_kinds import Target, headline_of, loss_of, task_kind
from modelyard.token_data import TokenData
from modelyard.train import starting_checkpoint
from modelyard.train.adapters import prepare_
from modelyard.train.checkpoints import Checkpoints
from modelyard.train.config import TrainConfig
from modelyard.train.contrast import PAIR_LOSSES
from modelyard.train.costs import costs_of, try_out
from modelyard.train.distillation import Teacher, lesson_of
from modelyard.train.events import RankEvent
from modelyard.train.first_weights import draws_one_by_one, is_on_meta, whole_because
from modelyard.train.local_rows import LocalRows
from modelyard.train.loop import Trainer
from modelyard.train.losses import PER_TOKEN
from modelyard.train.masked_rows import MaskedSplit
from modelyard.train.pair_rows import Pairs, item_pairs, text_pairs
from modelyard.train.precision import Precision
from modelyard.train.pretrained_network import vector_target
from modelyard.train.rank_checks import first_rows, require_outputs, require_room, require_sums
from modelyard.train.rows import Rows, Split, TextSplit, TokenSplit
from modelyard.train.starting import TEACHER_FIELD, Parent
from modelyard.train.tagged_rows import TaggedSplit
from modelyard.train.validation import VALIDATION_ROWS, Objective
from modelyard.transform import FittedTransform, TextTransform

if TYPE_CHECKING:
    import pandas as pd


class RankSpec(Frozen):
    """What a rank is told, as a file: the same for all of them."""

    dataset: ArtifactRef
    config: TrainConfig
    checkpoints: str
    init: ArtifactRef | None = None
    teacher: ArtifactRef | None = None
    pretrained: ArtifactRef | None = None
    weights: ArtifactRef | None = None


@dataclass(frozen=True, kw_only=True)
class Data:
    """The data set as a rank reads it; ``width`` is the network's input."""

    train: Rows
    validation: Rows
    target: Target
    width: int


def assemble(
    spec: RankSpec,
    catalog: Catalog,
    device: torch.device,
    emit: Callable[[RankEvent], None],
    rows: LocalRows,
    *,
    counts_costs: bool = False,
) -> Trainer:
    """The trainer of this rank, in the process group that it is in.

    Args:
        rows: where rows and tokens lie on this machine.
        counts_costs: measure what is needed to report the utilisation of the device.

    Raises:
        ConfigError: the network's outputs do not fit the target, or it has no zeros to keep.
        MachineFull: the disk has no room for the rows.
        DataError, DigestMismatch: files that are not what they should be.
    """
    with tempfile.TemporaryDirectory(prefix="modelyard-rank-") as scratch:
        folder = Path(scratch)
        parent = Parent.read(catalog, spec.teacher, TEACHER_FIELD) if spec.teacher else None
        data = _data(spec, catalog, rows, parent, folder / "data")
        kind = task_kind(data.target.task)
        output_width = kind.output_width(data.target)
        require_room(spec.config, data.width, output_width, device, has_weights=_has_weights(spec))
        teacher = _teacher(spec, catalog, parent, data.target, device, folder / "teacher") if parent else None
        network, _, stored = _network(spec, catalog, data, folder / "init", emit)
    if teacher:
        seen = first_rows(data.train)
        given = seen.features if seen.teacher_features is None else seen.teacher_features
        teacher.watch(network, (seen.features, given), spec.config, device)
    require_sums(spec.config, network, device)
    loss = loss_of(data.target)
    axes = ("t",) if loss in PER_TOKEN else ("2",) if loss in PAIR_LOSSES else ()
    place = torch.device("meta") if is_on_meta(network) else device
    example = first_rows(data.train).features.to(place)
    tried = try_out(network.to(place), example)
    require_outputs(tried.shape, example, output_width, axes)
    made = Trainer(
        spec.config,
        network,
        device,
        train=data.train,
        validation=data.validation,
        objective=Objective(
            loss=loss,
            metric=spec.config.stop.metric or headline_of(data.target),
            new_metric=lambda: kind.metric(data.target),
            validation_rows=VALIDATION_ROWS if isinstance(data.train, Split | Pairs) else 1,
            temperature=spec.config.pairs.temperature,
        ),
        checkpoints=Checkpoints(catalog.store, spec.checkpoints, spec.config.checkpoint),
        emit=emit,
        teacher=teacher,
    )
    made.stepper.stored = stored
    made.costs = costs_of(tried, example, spec.config.precision, device) if counts_costs else None
    return made


def _data(spec: RankSpec, catalog: Catalog, rows: LocalRows, teacher: Parent | None, folder: Path) -> Data:
    target = Target.model_validate_json(catalog.read(spec.dataset, TARGET_FILE))
    if target.task == "language_modelling":
        texts = _token_data(catalog, spec.dataset, rows)
        train, validation = (TokenSplit(texts.sequences(split)) for split in ("train", "validation"))
        return Data(train=train, validation=validation, target=target, width=texts.transform.width)
    dataset = Dataset.fetch(catalog, spec.dataset, folder, [])
    if loss_of(target) in PAIR_LOSSES:
        data = (
            item_pairs(catalog, spec.dataset, dataset, rows, teacher)
            if target.items
            else text_pairs(catalog, spec.dataset, dataset)
        )
        target = vector_target(spec.config.model, target)
        return Data(train=data[0], validation=data[1], target=target, width=dataset.transform.width)
    if isinstance(dataset.transform, TextTransform):
        train, validation = (
            _texts(spec, catalog, dataset, dataset.transform, split) for split in ("train", "validation")
        )
        return Data(train=train, validation=validation, target=target, width=dataset.transform.width)
    return Data(
        train=_table(spec, catalog, dataset, rows, "train", teacher),
        validation=_table(spec, catalog, dataset, rows, "validation"),
        target=target,
        width=dataset.transform.width,
    )


def _texts(spec: RankSpec, catalog: Catalog, dataset: Dataset, transform: TextTransform, split: SplitName) -> Rows:
    if dataset.target.task == "masked_language_modelling":
        return _hidden(spec, catalog, dataset, transform, split)
    parts = ((inputs, targets) for _, inputs, targets in _encoded(spec, catalog, dataset, split))
    sort = TaggedSplit if dataset.target.task == "token_classification" else TextSplit
    return sort(parts, transform.width if transform.padding == "fixed" else None)


def _hidden(spec: RankSpec, catalog: Catalog, dataset: Dataset, transform: TextTransform, split: SplitName) -> Rows:
    """Whole texts, long ones in several rows; in the validation split the same tokens are hidden each time."""
    assert transform.mask is not None, "preprocessing asked for it"
    config = spec.config
    masker = Masker(
        config.masking,
        mask=transform.mask,
        vocabulary=transform.vocabulary,
        marks=transform.marks,
        seed=config.seed,
    )
    frames = dataset.fetched_frames(catalog, spec.dataset, split)
    texts = (transform.pieces(list(frame[transform.column])) for frame in frames)
    pieces = (piece for some in texts for piece in some)
    fixed = transform.width if transform.padding == "fixed" else None
    return MaskedSplit(pieces, masker, is_fixed=split != "train", fixed=fixed)


def _encoded(
    spec: RankSpec, catalog: Catalog, dataset: Dataset, split: SplitName
) -> Iterator[tuple[pd.DataFrame, np.ndarray, np.ndarray]]:
    """Rows of a split as they come from the bucket, their network input and their encoded targets."""
    for frame in dataset.fetched_frames(catalog, spec.dataset, split):
        targets = encoded_targets(dataset.transform, dataset.target, frame)
        yield frame, dataset.transform.apply(dataset.transform.rows(frame)), targets


class Beginning(NamedTuple):
    """A network before its first step.

    Attributes:
        fresh: names of the weights that nobody trained before, where others did.
        stored: the values of a network on the meta device, as pages of files; None: they are drawn.
    """

    network: nn.Module
    fresh: list[str]
    stored: dict[str, torch.Tensor] | None = None


def starting_network(spec: RankSpec, catalog: Catalog, input_width: int, output_width: int, folder: Path) -> Beginning:
    """The starting model's with its weights, or the configured one with those that it comes with, or random ones; with
    adapters, and frozen, as the config says. The same in every process. Weights that ranks take one by one are not
    there yet: the network is on the meta device."""
    torch.manual_seed(spec.config.seed)  # initial weights do not depend on the number of ranks
    began = _beginning(spec, catalog, input_width, output_width, folder)
    if spec.config.init.trains_a_part:
        prepare_(began.network, spec.config.init, [f"network.{name}" for name in began.fresh])
    return began


def _network(
    spec: RankSpec, catalog: Catalog, data: Data, folder: Path, emit: Callable[[RankEvent], None]
) -> Beginning:
    width = task_kind(data.target.task).output_width(data.target)
    began = starting_network(spec, catalog, data.width, width, folder)
    if distributed.get_rank() == 0:
        if began.fresh:
            emit(RankEvent(kind="warning", message=f"new, with random weights: {', '.join(began.fresh)}"))
        if why := whole_because(spec.config, spec.config.model, has_weights=_has_weights(spec)):
            emit(RankEvent(kind="warning", message=f"each rank begins with the whole network: {why}"))
    return began


def _has_weights(spec: RankSpec) -> bool:
    return bool(spec.init or spec.pretrained or spec.weights)


def _beginning(spec: RankSpec, catalog: Catalog, input_width: int, output_width: int, folder: Path) -> Beginning:
    if draws_one_by_one(spec.config, spec.config.model, has_weights=_has_weights(spec)):
        return _without_values(spec, catalog, input_width, output_width, folder)
    began = _before_weights(spec, catalog, input_width, output_width, folder)
    if spec.weights:
        return Beginning(starting_checkpoint.load_(began.network, catalog, spec.weights, folder / "weights"), [])
    return began


def _without_values(spec: RankSpec, catalog: Catalog, input_width: int, output_width: int, folder: Path) -> Beginning:
    """A network on the meta device, and where the values of its weights are, if there are any."""
    with torch.device("meta"):
        network = build_model(spec.config.model, input_width, output_width)
    ref = spec.weights or spec.init
    if ref is None:
        return Beginning(network, [])
    if spec.weights:
        starting_checkpoint.require_same_shapes(catalog, spec.weights, network)
    fetch_weights(catalog, ref, folder)
    stored = StoredWeights(folder)
    stored.require_fit({name: value.shape for name, value in network.state_dict().items()}, str(ref))
    return Beginning(network, [], stored.tensors())


def _before_weights(spec: RankSpec, catalog: Catalog, input_width: int, output_width: int, folder: Path) -> Beginning:
    """As it is before the weights of a checkpoint are loaded, if one is named."""
    if spec.init:
        return Beginning(_fetched(catalog, spec.init, folder).train(), [])
    if not spec.pretrained:
        return Beginning(build_model(spec.config.model, input_width, output_width), [])
    from modelyard.models.transformer import load_pretrained  # transformers: seconds, and an extra

    assert isinstance(spec.config.model, HuggingFaceConfig)
    catalog.fetch(spec.pretrained, folder)
    return Beginning(*load_pretrained(spec.config.model, output_width, folder))


def _teacher(
    spec: RankSpec, catalog: Catalog, parent: Parent, own: Target, device: torch.device, folder: Path
) -> Teacher:
    its = parent.target
    return Teacher(
        _fetched(catalog, parent.ref, folder),
        device,
        spec.config.distill,
        lesson=lesson_of(loss_of(own), spec.config),
        precision=Precision(spec.config.precision, device),
        scale=its.scale / own.scale,
        shift=(its.mean - own.mean) / own.scale,
    )


def _token_data(catalog: Catalog, dataset: ArtifactRef, rows: LocalRows) -> TokenData:
    splits: list[SplitName] = ["train", "validation"]
    num_bytes = sum(entry.size for entry in catalog.manifest(dataset).content.files.values())
    return TokenData(
        rows.folder(f"{dataset.digest}-tokens", num_bytes, lambda made: TokenData.fetch(catalog, dataset, made, splits))
    )


def _table(
    spec: RankSpec, catalog: Catalog, dataset: Dataset, rows: LocalRows, split: SplitName, teacher: Parent | None = None
) -> Split:
    """A split of a table, with the teacher's own inputs where its transform was fitted on other rows."""
    seen = teacher.transform if teacher and teacher.transform != dataset.transform else None
    assert seen is None or isinstance(seen, FittedTransform), "checked before ranks were started"

    def parts() -> Iterator[tuple[np.ndarray, ...]]:
        for frame, inputs, targets in _encoded(spec, catalog, dataset, split):
            yield (inputs, targets, seen.apply_frame(frame)) if seen else (inputs, targets)

    # What the rows are made by is a part of the name: another version of it makes others.
    means = [code_version("modelyard.datasets", ["numpy", "pandas"]), seen.model_dump_json() if seen else ""]
    name = f"{spec.dataset.digest}-{split}-{hashlib.sha256(''.join(means).encode()).hexdigest()[:16]}"
    num_rows = catalog.manifest(spec.dataset).content.facts.get("splits", {}).get(split, 0)
    width = dataset.transform.width + (seen.width if seen else 0)
    return rows.split(name, num_rows * (4 * width + 8), parts)


def _fetched(catalog: Catalog, ref: ArtifactRef, folder: Path) -> nn.Module:
    fetch_weights(catalog, ref, folder, [MODEL_FILE])
    return load_model(folder)
