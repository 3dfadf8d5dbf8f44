"""The training stage as one function: from a data set artifact to a model artifact."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Attempt, Catalog, Origin, Product, Work
from modelyard.code_version import code_version
from modelyard.datasets import TARGET_FILE, TRANSFORM_FILE
from modelyard.errors import ConfigError
from modelyard.models.config import MODEL_FILE, WEIGHTS_FILE, CustomConfig, ModelSpec
from modelyard.task_kinds import Target, task_kind
from modelyard.train.config import TrainConfig
from modelyard.train.events import RankEvent
from modelyard.train.launch import RankGroup
from modelyard.transform import FittedTransform

HISTORY_FILE = "history.json"
log = logging.getLogger(__name__)


def train(
    catalog: Catalog,
    dataset: ArtifactRef,
    config: TrainConfig,
    origin: Origin,
    on_event: Callable[[RankEvent], None] = lambda _: None,
) -> Product:
    """Train the configured network on a data set, going on from the newest checkpoint of the same work.

    Args:
        on_event: told of everything the ranks report, in this process.

    Raises:
        TrainingFailed: the loss left the finite numbers, the target was not reached, or a rank met an error that a
            restart would meet again.
        RankLost: ranks died more often than ``max_restarts``, or went silent.
    """
    work = training_work(dataset, config)

    def build(attempt: Attempt) -> None:
        checkpoints = f"{catalog.folder('model', work.key)}/checkpoints"
        _run_ranks(attempt, dataset, config, checkpoints, on_event)
        _add_model(catalog, attempt, dataset, config, checkpoints)

    return catalog.produce(work, build, origin)


def require_factory(config: TrainConfig) -> None:
    """Refuse a user's network that cannot be imported here, before anything is computed for it.

    Raises:
        ConfigError: names the preset key.
    """
    if not isinstance(config.model, CustomConfig):
        return
    module = config.model.factory.partition(":")[0]
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise ConfigError("train.model.factory", f"no module {module!r} can be imported where flows run")


def training_work(dataset: ArtifactRef, config: TrainConfig) -> Work:
    """What a trained model depends on."""
    factories = [config.model.factory] if isinstance(config.model, CustomConfig) else []
    return Work(
        kind="model",
        config=config.identity(),
        inputs={"dataset": dataset},
        code_version=code_version("modelyard.train", ["torch", "numpy"], factories),
    )


def _run_ranks(
    attempt: Attempt,
    dataset: ArtifactRef,
    config: TrainConfig,
    checkpoints: str,
    on_event: Callable[[RankEvent], None],
) -> None:
    from modelyard.train.worker import RankSpec

    spec_file = attempt.scratch / "spec.json"
    spec_file.write_text(RankSpec(dataset=dataset, config=config, checkpoints=checkpoints).model_dump_json())
    with RankGroup(spec_file, config.ranks, config.max_restarts, config.silence_seconds) as group:
        for event in group.events():
            on_event(event)


def _add_model(catalog: Catalog, attempt: Attempt, dataset: ArtifactRef, config: TrainConfig, checkpoints: str) -> None:
    """Publish the kept epoch of the last checkpoint, with what is needed to use it."""
    from modelyard.models.build import save_model
    from modelyard.train.checkpoints import Checkpoints

    shelf = Checkpoints(catalog.store, checkpoints)
    pointer = shelf.latest()
    assert pointer is not None, "ranks that finish have saved a checkpoint"
    history = shelf.load(pointer)["history"]
    transform, target = catalog.read(dataset, TRANSFORM_FILE), catalog.read(dataset, TARGET_FILE)
    spec = _model_spec(config, transform, target)
    save_model(spec, history["best_weights"], attempt.scratch)
    for name in (MODEL_FILE, WEIGHTS_FILE):
        attempt.add(name, attempt.scratch / name)
    attempt.add_bytes(TRANSFORM_FILE, transform)
    attempt.add_bytes(TARGET_FILE, target)
    attempt.add_json(HISTORY_FILE, history["epochs"])
    parameters = sum(tensor.numel() for tensor in history["best_weights"].values())
    attempt.facts.update(
        metrics=history["epochs"][history["best_epoch"] - 1],
        best_epoch=history["best_epoch"],
        epochs=len(history["epochs"]),
        parameters=parameters,
    )


def _model_spec(config: TrainConfig, transform: bytes, target: bytes) -> ModelSpec:
    schema = Target.model_validate_json(target)
    return ModelSpec(
        model=config.model,
        input_width=FittedTransform.model_validate_json(transform).width,
        output_width=task_kind(schema.task).output_width(schema),
    )
