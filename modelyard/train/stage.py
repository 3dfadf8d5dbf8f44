"""The training stage as one function: from a data set artifact to a model artifact."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Attempt, Catalog, Origin, Product, Work
from modelyard.code_version import code_version
from modelyard.datasets import TARGET_FILE, TRANSFORM_FILE
from modelyard.errors import NotFound
from modelyard.models.config import MODEL_FILE, WEIGHTS_FILE, CustomConfig, ModelConfig, ModelSpec
from modelyard.task_kinds import Target, task_kind
from modelyard.train.config import TrainConfig
from modelyard.train.events import RankEvent
from modelyard.train.launch import RankGroup
from modelyard.train.requirements import require_trainable
from modelyard.train.starting import Parents
from modelyard.transform import FittedTransform

HISTORY_FILE = "history.json"


def train(
    catalog: Catalog,
    dataset: ArtifactRef,
    config: TrainConfig,
    origin: Origin,
    on_event: Callable[[RankEvent], None] = lambda _: None,
    *,
    init: ArtifactRef | None = None,
    teacher: ArtifactRef | None = None,
) -> Product:
    """Train a network on a data set, going on from the newest checkpoint of the same work.

    Args:
        on_event: told of everything the ranks report, in this process.
        init: a ``model`` artifact to begin with; its network, whatever its shapes, takes the place of ``config.model``.
        teacher: a ``model`` artifact whose answers are learned from, as ``config.distill`` says.

    Raises:
        ConfigError, DataError: what `require_trainable` refuses, before a rank is started.
        TrainingFailed: the loss left the finite numbers, the target was not reached, or a rank met an error that a
            restart would meet again.
        RankLost: ranks died more often than ``max_restarts``, or went silent.
    """
    parents = Parents.read(catalog, config, init, teacher)
    work = training_work(dataset, config, parents)

    def build(attempt: Attempt) -> None:
        require_trainable(catalog, dataset, config, parents)
        checkpoints = f"{catalog.folder('model', work.key)}/checkpoints"
        spec = {"dataset": dataset, "config": config, "checkpoints": checkpoints, "init": init, "teacher": teacher}
        _run_ranks(attempt, spec, config, on_event)
        network = parents.init.spec.model if parents.init else config.model
        _add_model(catalog, attempt, dataset, config, checkpoints, network)

    return catalog.produce(work, build, origin)


def training_work(dataset: ArtifactRef, config: TrainConfig, parents: Parents) -> Work:
    """What a trained model depends on."""
    own = [config.model.factory] if isinstance(config.model, CustomConfig) and not parents.init else []
    factories = {*own, *(factory for parent in parents.all for factory in parent.factories)}
    return Work(
        kind="model",
        config=config.identity(parents.unused),
        inputs={"dataset": dataset, **parents.inputs},
        code_version=code_version("modelyard.train", ["torch", "numpy"], sorted(factories)),
    )


def _run_ranks(
    attempt: Attempt, spec: Mapping[str, Any], config: TrainConfig, on_event: Callable[[RankEvent], None]
) -> None:
    from modelyard.train.assembly import RankSpec

    spec_file = attempt.scratch / "spec.json"
    spec_file.write_text(RankSpec.model_validate(spec).model_dump_json())
    with RankGroup(spec_file, config.ranks, config.max_restarts, config.silence_seconds) as group:
        for event in group.events():
            on_event(event)


def _add_model(
    catalog: Catalog,
    attempt: Attempt,
    dataset: ArtifactRef,
    config: TrainConfig,
    checkpoints: str,
    network: ModelConfig,
) -> None:
    """Publish the best checkpoint's weights, with what is needed to use them."""
    from modelyard.models.build import save_model
    from modelyard.train.checkpoints import Checkpoints
    from modelyard.train.progress import Progress
    from modelyard.train.snapshots import published_weights

    shelf = Checkpoints(catalog.store, checkpoints, config.checkpoint)
    pointers = shelf.pointers()
    progress = Progress.from_json(pointers[0].progress)
    best = progress.best_validation
    kept = next((pointer for pointer in pointers if pointer.step == best["step"] and pointer.score), None)
    if kept is None:
        raise NotFound(
            f"{checkpoints}: the best checkpoint (step {best['step']:g}) is gone; delete that folder and train anew"
        )
    shelf.fetch(kept, attempt.scratch / "checkpoint")
    weights = published_weights(attempt.scratch / "checkpoint", progress.shapes)
    transform, target = catalog.read(dataset, TRANSFORM_FILE), catalog.read(dataset, TARGET_FILE)
    save_model(_model_spec(network, transform, target), weights, attempt.scratch)
    for name in (MODEL_FILE, WEIGHTS_FILE):
        attempt.add(name, attempt.scratch / name)
    attempt.add_bytes(TRANSFORM_FILE, transform)
    attempt.add_bytes(TARGET_FILE, target)
    attempt.add_json(HISTORY_FILE, progress.validations)
    headline = config.stop.metric or task_kind(Target.model_validate_json(target).task).headline
    attempt.facts.update(
        metrics={name: value for name, value in best.items() if name not in {"step", "epoch"}},
        headline=headline,
        best_epoch=best["epoch"],
        best_step=int(best["step"]),
        epochs=progress.validations[-1]["epoch"],
        steps=progress.step,
        stopped_by=progress.stopped_by,
        parameters=sum(tensor.numel() for tensor in weights.values()),
    )


def _model_spec(network: ModelConfig, transform: bytes, target: bytes) -> ModelSpec:
    schema = Target.model_validate_json(target)
    return ModelSpec(
        model=network,
        input_width=FittedTransform.model_validate_json(transform).width,
        output_width=task_kind(schema.task).output_width(schema),
    )
