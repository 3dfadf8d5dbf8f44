"""What can be known to fail before a rank is started: a sentence now instead of a group that dies in half a minute."""

from __future__ import annotations

import importlib.util
import re

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Catalog
from modelyard.datasets import TARGET_FILE, TRANSFORM_FILE
from modelyard.errors import ConfigError, DataError
from modelyard.models.config import (
    CnnConfig,
    CustomConfig,
    HuggingFaceConfig,
    ModelConfig,
    RecommenderConfig,
    ReshapedConfig,
)
from modelyard.nearest import nearest
from modelyard.ray_cluster import require_ray
from modelyard.task_kinds import Target, task_kind
from modelyard.train.config import TrainConfig
from modelyard.train.memory import Room, free_memory, require_memory
from modelyard.train.pretrained_network import vector_target, whole_network
from modelyard.train.starting import TEACHER_FIELD, Parents, Transform, read_transform
from modelyard.train.starting_checkpoint import require_same_shapes
from modelyard.transform import FittedTransform, TextTransform
from modelyard.transform.tokens import TokenTransform

PIXEL = re.compile(r"_(\d+)_(\d+)(?:_[a-z]+)?$")  # pixel_3_7, pixel_3_7_red


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


def require_trainable(
    catalog: Catalog,
    dataset: ArtifactRef,
    config: TrainConfig,
    parents: Parents,
    pretrained: ArtifactRef | None = None,
    weights: ArtifactRef | None = None,
) -> ModelConfig:
    """Refuse a config that this data set cannot be trained with; the network that is trained, with nothing left open.

    Raises:
        DataError: the training or validation split is empty.
        ConfigError: more ranks than training rows or devices, a device that is not there, a stop metric that the task does not have, a starting model or
            teacher for another task or other columns, ``weights`` (of a checkpoint) for another network, a network that does not read such data, or a strategy that this
            network cannot be spread by.
        MissingExtra: Ray is to start the ranks, and is not installed.
    """
    if config.launcher == "ray":
        require_ray("train.launcher ray")
    else:
        _require_devices(config)
    facts = catalog.manifest(dataset).content.facts
    _require_rows(facts.get("splits", {}), config)
    target = Target.model_validate_json(catalog.read(dataset, TARGET_FILE))
    transform = read_transform(catalog.read(dataset, TRANSFORM_FILE))
    _require_stop(config, transform, target)
    _require_inputs(config, transform, target, parents)
    if target.task in ("embedding", "retrieval"):
        _require_pairs(config, transform, target, parents)
    if isinstance(transform, TokenTransform):
        # Sequences, not texts, are what is dealt out to ranks.
        sequences = {split: -(-tokens // transform.sequence_length) for split, tokens in facts["tokens"].items()}
        _require_rows(sequences, config)
        _require_warm(config, sequences.get("train"))
    else:
        _require_warm(config, facts.get("splits", {}).get("train"))
    for parent in parents.all:
        parent.require_fit(transform, target)
    _require_teachable(config, target, parents)
    if config.init.trains_a_part and parents.init is None and pretrained is None and weights is None:
        raise ConfigError(
            "train.init", "lora and freeze keep weights as they are, and random ones are worth nothing: name a model in"
            " train.init.model, a checkpoint in train.init.checkpoint, or a source in train.model"
        )  # fmt: skip
    network = _whole_network(catalog, config, transform, target, parents, pretrained)
    output_width = task_kind(target.task).output_width(vector_target(network, target))
    if isinstance(transform, FittedTransform):
        _require_image(network, transform)
    if config.init.trains_a_part:
        _require_parts(config, network, transform.width, output_width)
    _require_network(config, network, transform.width, output_width)
    _require_layers(config, network, transform.width, output_width, parents)
    if weights:
        _require_weights(catalog, weights, network, transform.width, output_width)
    return network


def _require_devices(config: TrainConfig) -> None:
    """This machine has what its ranks are to run on; of other nodes their ranks find out."""
    from modelyard.train.devices import Accelerators, require_devices

    require_devices(config.device, config.ranks, Accelerators.here())


def _require_stop(config: TrainConfig, transform: Transform, target: Target) -> None:
    """What ends the training can be told of such rows."""
    known = [*task_kind(target.task).metric(target).compute(), "train_loss"]
    if config.stop.metric is not None and config.stop.metric not in known:
        raise ConfigError("train.stop.metric", nearest(config.stop.metric, known))
    if config.stop.max_tokens and isinstance(transform, FittedTransform):
        raise ConfigError("train.stop.max_tokens", "rows of this data set have no tokens: take train.stop.max_steps")


def _require_warm(config: TrainConfig, rows: int | None) -> None:
    """The learning rate gets to its top: a warm-up that is longer than the training ends it on the way there."""
    warm, stop = config.schedule.warmup_steps, config.stop
    if not warm or rows is None or stop.max_steps == 0:
        return
    an_epoch = 1 if config.optimizer.name == "gd" else -(-rows // config.batch_size)
    steps = min(config.max_epochs * an_epoch, stop.max_steps or config.max_epochs * an_epoch)
    if warm >= steps:
        raise ConfigError(
            "train.schedule.warmup_steps",
            f"{warm:,} steps of warm-up, and the whole training has {steps:,} ({an_epoch:,} an epoch): the learning rate"
            " would never get to its top; take fewer, or more epochs",
        )


def _whole_network(
    catalog: Catalog,
    config: TrainConfig,
    transform: Transform,
    target: Target,
    parents: Parents,
    pretrained: ArtifactRef | None,
) -> ModelConfig:
    """The network with what only the data, or the folder that it comes from, can tell."""
    network = parents.init.spec.model if parents.init else config.model
    if isinstance(network, HuggingFaceConfig) and isinstance(transform, TextTransform) and not parents.init:
        return whole_network(catalog, network, pretrained, transform, target)
    if isinstance(network, RecommenderConfig) and isinstance(transform, FittedTransform) and target.items:
        tables = {"query_tables": tuple(transform.tables), "item_tables": tuple(target.items.tables)}
        return network.model_copy(update=tables)
    return network


def _require_inputs(config: TrainConfig, transform: Transform, target: Target, parents: Parents) -> None:
    """A network of numbers cannot read tokens, nor the other way round; a user's own may do either."""
    kind = parents.init.spec.network.kind if parents.init else config.model.kind
    right, asked = ["mlp", "cnn"], target.task
    if target.task == "retrieval":
        right = ["recommender"]
    if isinstance(transform, TokenTransform):
        right = ["gpt"]
    elif isinstance(transform, TextTransform):
        right, asked = ["huggingface"], f"{target.task} of texts"
    if target.task in ("embedding", "retrieval"):
        if kind not in right:  # of a user's own network nobody knows how to ask it for the other side
            raise ConfigError("train.model.kind", f"{kind!r} is not for {asked}; take {right[0]}")
    elif kind not in ("custom", *right):
        raise ConfigError("train.model.kind", f"{kind!r} is not for {asked}; take {', '.join(right)}, or custom")


def _require_pairs(config: TrainConfig, transform: Transform, target: Target, parents: Parents) -> None:
    """What cannot be done with rows that are told from each other."""
    others = "a row is told from the other rows of its step"
    if config.strategy in ("diloco", "tensor"):
        raise ConfigError("train.strategy", f"{others}, which {config.strategy} does not bring together; take ddp")
    if config.accumulate > 1:
        raise ConfigError(
            "train.accumulate", f"{others}: passes would cut it, and change what is learned; 1, or more ranks"
        )
    if config.optimizer.name == "gd":
        raise ConfigError("train.optimizer.name", f"{others}, and gd takes all rows for one step; take adam")
    init = parents.init
    if init and target.items and (init.transform, init.target.items) != (transform, target.items):
        raise ConfigError(
            "train.init.model", f"{init.ref} has tables for other values than this data set's: its vectors would stand for"
            " other users and items; begin anew"
        )  # fmt: skip


def _require_parts(config: TrainConfig, network: ModelConfig, input_width: int, output_width: int) -> None:
    """The parts that are trained, or are not, exist. A user's own network cannot be looked at without building it."""
    import torch

    from modelyard.models.build import build_model
    from modelyard.train.adapters import require_names

    if isinstance(network, CustomConfig):
        return
    with torch.device("meta"):
        require_names(build_model(network, input_width, output_width), config.init)


def _require_image(network: ModelConfig, transform: FittedTransform) -> None:
    """Convolutions need each pixel as one number, in its place."""
    shape = network.base if isinstance(network, ReshapedConfig) else network
    if not isinstance(shape, CnnConfig):
        return
    pixels = [tuple(map(int, found.groups())) for name in transform.columns if (found := PIXEL.search(name))]
    height, width = shape.image
    if transform.width != shape.input_width:
        largest = [max(place) + 1 for place in zip(*pixels, strict=True)]
        hint = (
            f"; its columns say {largest[0]} x {largest[1]}"
            if largest and len(pixels) == len(transform.columns)
            else ""
        )
        raise ConfigError(
            "train.model.image",
            f"{height} x {width} pixels of {shape.image_channels} channels are {shape.input_width} inputs a row, the data"
            f" set gives {transform.width}{hint}",
        )
    if transform.width != len(transform.columns) or transform.selected is not None or transform.projection is not None:
        raise ConfigError(
            "train.model.kind",
            "'cnn' needs a row of pixels as they are: leave out transform.select, transform.components and columns that"
            " are no numbers",
        )
    if pixels != sorted(pixels):
        raise ConfigError(
            "train.model.kind", "'cnn' needs the pixels line by line, and the columns are in another order"
        )


def _require_network(config: TrainConfig, network: ModelConfig, input_width: int, output_width: int) -> None:
    """Refuse a strategy that it cannot be spread by. The networks of Modelyard are built without memory to be looked at; a
    user's own may not be able to."""
    import torch

    from modelyard.models.build import build_model
    from modelyard.train.holdings import deal
    from modelyard.train.tensor_plans import require_plan

    if config.strategy == "tensor":
        require_plan(network, config.tensor.size)
    if isinstance(network, CustomConfig):
        return
    if config.strategy == "parameter_server":
        with torch.device("meta"):
            sizes = [weight.numel() for weight in build_model(network, input_width, output_width).parameters()]
        deal(sizes, config.parameter_server.servers)


def require_free_memory(
    catalog: Catalog, dataset: ArtifactRef, config: TrainConfig, network: ModelConfig, *, has_weights: bool
) -> None:
    """Refuse a network that the memory of this machine does not hold now, where ranks run on its CPU. Memory of
    accelerators, of other machines and of Ray's nodes their ranks look at: this process is not there, or would take some.

    Args:
        network: as `require_trainable` gives it.
        has_weights: it begins with those of another model, a folder or a checkpoint.

    Raises:
        ConfigError: with the estimate and what there is.
    """
    from modelyard.train.devices import Accelerators, chosen_kind
    from modelyard.train.first_weights import weights_to_hold

    if config.launcher != "torch" or chosen_kind(config.device, Accelerators.here()) != "cpu":
        return
    transform = read_transform(catalog.read(dataset, TRANSFORM_FILE))
    target = vector_target(network, Target.model_validate_json(catalog.read(dataset, TARGET_FILE)))
    output_width = task_kind(target.task).output_width(target)
    if weights := weights_to_hold(config, network, transform.width, output_width, has_weights=has_weights):
        require_memory(config, weights, Room(host=free_memory()))


def _require_teachable(config: TrainConfig, target: Target, parents: Parents) -> None:
    hidden = config.distill.hidden
    if hidden and parents.teacher is None:
        raise ConfigError("train.distill.hidden", f"there is no teacher to learn from: name one in {TEACHER_FIELD}")
    if hidden and isinstance(hidden.layers, int) and target.task == "retrieval":
        raise ConfigError(
            "train.distill.hidden.layers",
            "two towers have no one order of layers to count in: name them, as {queries.head.layers.0:"
            " queries.head.layers.0}, or leave out train.distill.hidden",
        )


def _require_layers(
    config: TrainConfig, network: ModelConfig, input_width: int, output_width: int, parents: Parents
) -> None:
    """The layers that are compared exist; whether they fit, and those of a user's own network, the ranks find out."""
    import torch

    from modelyard.models.build import build_model
    from modelyard.train.hidden_states import paired

    if not (config.distill.hidden and parents.teacher):
        return
    its = parents.teacher.spec
    if not any(isinstance(one, CustomConfig) for one in (network, its.network)):
        with torch.device("meta"):
            student = build_model(network, input_width, output_width)
            paired(config.distill.hidden.layers, student, build_model(its.model, its.input_width, its.output_width))


def _require_weights(
    catalog: Catalog, weights: ArtifactRef, network: ModelConfig, input_width: int, output_width: int
) -> None:
    """A checkpoint's weights are this network's. Of a user's own the ranks find out."""
    import torch

    from modelyard.models.build import build_model

    if not isinstance(network, CustomConfig):
        with torch.device("meta"):
            require_same_shapes(catalog, weights, build_model(network, input_width, output_width))


def _require_rows(splits: dict[str, int], config: TrainConfig) -> None:
    for split in ("train", "validation"):
        if splits.get(split) == 0:
            raise DataError(f"the {split} split is empty; raise preprocess.split.{split} or add data")
    rows = splits.get("train")
    if rows is not None and rows < config.most_ranks:
        raise ConfigError("train.ranks", f"{config.most_ranks} ranks for {rows} training rows; at most one rank a row")
