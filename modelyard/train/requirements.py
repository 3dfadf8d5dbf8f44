"""What can be known to fail before a rank is started: a sentence now instead of a group that dies in half a minute."""

from __future__ import annotations

import importlib.util

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Catalog
from modelyard.datasets import TARGET_FILE, TRANSFORM_FILE
from modelyard.errors import ConfigError, DataError
from modelyard.models.config import CustomConfig, ModelConfig
from modelyard.task_kinds import Target, task_kind
from modelyard.train.config import TrainConfig, nearest
from modelyard.train.memory import free_memory, require_memory
from modelyard.train.starting import Parents, read_transform
from modelyard.transform.tokens import TokenTransform


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


def require_trainable(catalog: Catalog, dataset: ArtifactRef, config: TrainConfig, parents: Parents) -> None:
    """Refuse a config that this data set cannot be trained with.

    Raises:
        DataError: the training or validation split is empty.
        ConfigError: more ranks than training rows, a stop metric that the task does not have, a starting model or
            teacher for another task or other columns, or a strategy that this network cannot be spread by.
    """
    facts = catalog.manifest(dataset).content.facts
    _require_rows(facts.get("splits", {}), config)
    target = Target.model_validate_json(catalog.read(dataset, TARGET_FILE))
    known = [*task_kind(target.task).metric(target).compute(), "train_loss"]
    if config.stop.metric is not None and config.stop.metric not in known:
        raise ConfigError("train.stop.metric", nearest(config.stop.metric, known))
    transform = read_transform(catalog.read(dataset, TRANSFORM_FILE))
    _require_inputs(config, target, parents)
    if isinstance(transform, TokenTransform):
        # Sequences, not texts, are what is dealt out to ranks.
        sequences = {split: -(-tokens // transform.sequence_length) for split, tokens in facts["tokens"].items()}
        _require_rows(sequences, config)
    for parent in parents.all:
        parent.require_fit(transform, target)
    network = parents.init.spec.model if parents.init else config.model
    _require_network(config, network, transform.width, task_kind(target.task).output_width(target))


def _require_inputs(config: TrainConfig, target: Target, parents: Parents) -> None:
    """A network of numbers cannot read tokens, nor the other way round; a user's own may do either."""
    kind = parents.init.spec.model.kind if parents.init else config.model.kind
    reads_text = target.task == "language_modelling"
    if kind != "custom" and reads_text != (kind == "gpt"):
        right = "gpt" if reads_text else "mlp"
        raise ConfigError("train.model.kind", f"{kind!r} is not for {target.task}; take {right}, or custom")


def _require_network(config: TrainConfig, network: ModelConfig, input_width: int, output_width: int) -> None:
    """Refuse what its weights say. The networks of Modelyard are built without memory to be looked at; a user's own may
    not be able to."""
    import torch

    from modelyard.models.build import build_model
    from modelyard.train.holdings import deal
    from modelyard.train.tensor_plans import require_plan

    if config.strategy == "tensor":
        require_plan(network, config.tensor.size)
    if isinstance(network, CustomConfig):
        return
    with torch.device("meta"):
        sizes = [weight.numel() for weight in build_model(network, input_width, output_width).parameters()]
    if config.strategy == "parameter_server":
        deal(sizes, config.parameter_server.servers)
    if not torch.accelerator.is_available():
        require_memory(config, sum(sizes), free_memory())


def _require_rows(splits: dict[str, int], config: TrainConfig) -> None:
    for split in ("train", "validation"):
        if splits.get(split) == 0:
            raise DataError(f"the {split} split is empty; raise preprocess.split.{split} or add data")
    rows = splits.get("train")
    if rows is not None and rows < config.most_ranks:
        raise ConfigError("train.ranks", f"{config.most_ranks} ranks for {rows} training rows; at most one rank a row")
