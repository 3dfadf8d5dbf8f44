"""The training stage as one function: from a data set artifact to a model artifact."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Attempt, Catalog, Origin, Product, Work
from modelyard.code_version import code_version
from modelyard.models.config import CustomConfig, HuggingFaceConfig
from modelyard.train.config import TrainConfig
from modelyard.train.device_locks import NO_DEVICES, HeldDevices, held_devices
from modelyard.train.events import RankEvent
from modelyard.train.launch import RankGroup, group_name
from modelyard.train.pretrained_network import pretrained_of
from modelyard.train.requirements import require_free_memory, require_trainable
from modelyard.train.starting import Parents
from modelyard.train.starting_checkpoint import weights_of

JOB_FILE = "job"  # beside checkpoints: what other nodes are told
HISTORY_FILE, SAMPLES_FILE = "history.json", "samples.md"
Holding = Callable[[str, int], AbstractContextManager[object]]


def train(
    catalog: Catalog,
    dataset: ArtifactRef,
    config: TrainConfig,
    origin: Origin,
    on_event: Callable[[RankEvent], None] = lambda _: None,
    *,
    init: ArtifactRef | None = None,
    teacher: ArtifactRef | None = None,
    holding: Holding = lambda _kind, _count: nullcontext(),
) -> Product:
    """Train a network on a data set, going on from the newest checkpoint of the same work.

    Args:
        on_event: told of everything the ranks report, in this process.
        init: a ``model`` artifact to begin with; its network, whatever its shapes, takes the place of ``config.model``.
        teacher: a ``model`` artifact whose answers are learned from, as ``config.distill`` says.
        holding: given what ranks of this machine compute on (torch's word) and how many they are, what is entered before
            they start, and left when they have ended. A cluster of Ray's keeps its own books.

    Raises:
        ConfigError, DataError: what `require_trainable` refuses, before a rank is started.
        TrainingFailed: the loss left the finite numbers, the target was not reached, or a rank met an error that a
            restart would meet again.
        MachineBusy: other trainings hold the accelerators.
        RankLost: ranks died more often than ``max_restarts``, or went silent.
    """
    parents = Parents.read(catalog, config, init, teacher)
    begins = beginnings(catalog, config, parents, origin)
    pretrained, weights = begins.get("pretrained"), begins.get("weights")
    work = training_work(dataset, config, parents, begins)

    def build(attempt: Attempt) -> None:
        from modelyard.train.assembly import RankSpec
        from modelyard.train.publish import publish  # torch: two seconds that a found model need not wait for

        if config.stop.max_steps == 0:
            from modelyard.train.taking import take_as_it_is

            take_as_it_is(catalog, attempt, dataset, config, pretrained)
            return
        network = require_trainable(catalog, dataset, config, parents, pretrained, weights)
        has_weights = bool(init or pretrained or weights)
        checkpoints = f"{catalog.folder('model', work.key)}/checkpoints"
        spec = {
            "dataset": dataset,
            "config": config.model_copy(update={"model": network}),
            "checkpoints": checkpoints,
            "init": init,
            "teacher": teacher,
            "pretrained": pretrained,
            "weights": weights,
        }

        def heard(event: RankEvent) -> None:
            attempt.measurements.update({"ranks": event.about} if event.about else {})
            on_event(event)

        with _devices(catalog, config, holding) as devices:
            require_free_memory(catalog, dataset, config, network, has_weights=has_weights)
            _run_ranks(catalog, attempt, spec, config, heard, devices)
        publish(catalog, attempt, RankSpec.model_validate(spec), network)

    return catalog.produce(work, build, origin)


def beginnings(catalog: Catalog, config: TrainConfig, parents: Parents, origin: Origin) -> dict[str, ArtifactRef]:
    """What the config names to begin with besides models, as artifacts by role: a network that comes with weights, a
    checkpoint's weights.

    Raises:
        ConfigError, DataError, DigestMismatch, NotFound: one cannot be taken (`pretrained_of`, `weights_of`).
    """
    found = {
        "pretrained": None if parents.init else pretrained_of(catalog, config, origin),
        "weights": weights_of(catalog, config, origin),
    }
    return {role: ref for role, ref in found.items() if ref}


def training_work(
    dataset: ArtifactRef, config: TrainConfig, parents: Parents, begins: Mapping[str, ArtifactRef] | None = None
) -> Work:
    """What a trained model depends on; ``begins`` as `beginnings` finds it."""
    networks = [*([] if parents.init else [config.model]), *(parent.spec.network for parent in parents.all)]
    library = ["peft"] if config.init.lora else []
    library += ["transformers"] if any(isinstance(network, HuggingFaceConfig) for network in networks) else []
    own = [config.model.factory] if isinstance(config.model, CustomConfig) and not parents.init else []
    factories = {*own, *(factory for parent in parents.all for factory in parent.factories)}
    says_how = config.init.trains_a_part or config.init.checkpoint
    return Work(
        kind="model",
        config=config.identity(parents.unused - ({"init"} if says_how else set())),
        inputs={"dataset": dataset, **(begins or {}), **parents.inputs},
        code_version=code_version("modelyard.train", ["torch", "numpy", *library], sorted(factories)),
    )


def validations_so_far(catalog: Catalog, work: Work, config: TrainConfig) -> list[dict[str, float]]:
    """What a training that is not over has validated up to its newest checkpoint, where it goes on."""
    from modelyard.train.checkpoints import Checkpoints

    folder = f"{catalog.folder('model', work.key)}/checkpoints"
    pointers = Checkpoints(catalog.store, folder, config.checkpoint).pointers()
    return pointers[0].progress["validations"] if pointers else []


@contextmanager
def _devices(catalog: Catalog, config: TrainConfig, holding: Holding) -> Generator[HeldDevices]:
    """What this machine's ranks compute on, once it is theirs."""
    from modelyard.train.devices import Accelerators, chosen_kind

    if config.launcher == "ray":
        yield NO_DEVICES
        return
    here = Accelerators.here()
    kind, folder = chosen_kind(config.device, here), catalog.store.settings.home / "devices"
    with holding(kind, config.ranks), held_devices(folder, kind, config.ranks, here.count) as devices:
        yield devices


def _run_ranks(
    catalog: Catalog,
    attempt: Attempt,
    spec: Mapping[str, Any],
    config: TrainConfig,
    on_event: Callable[[RankEvent], None],
    devices: HeldDevices,
) -> None:
    from modelyard.train.assembly import RankSpec

    spec_file = attempt.scratch / "spec.json"
    spec_file.write_text(RankSpec.model_validate(spec).model_dump_json())
    job = f"{spec['checkpoints']}/{JOB_FILE}"
    if config.meets:
        catalog.store.put(job, spec_file.read_bytes())
        on_event(RankEvent(kind="warning", message=f"other nodes: python -m modelyard.train.launch {job}"))
    with RankGroup(spec_file, config, group_name(job), devices) as group:
        for event in group.events():
            on_event(event)
