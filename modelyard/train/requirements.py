"""What can be known to fail before a rank is started: a sentence now instead of a group that dies in half a minute."""

from __future__ import annotations

import importlib.util

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Catalog
from modelyard.datasets import TARGET_FILE, TRANSFORM_FILE
from modelyard.errors import ConfigError, DataError
from modelyard.models.config import CustomConfig
from modelyard.task_kinds import Target, task_kind
from modelyard.train.config import TrainConfig, nearest
from modelyard.train.starting import Parents
from modelyard.transform import FittedTransform


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
        ConfigError: more ranks than training rows, a stop metric that the task does not have, or a starting model or
            teacher for another task or other columns.
    """
    _require_rows(catalog.manifest(dataset).content.facts.get("splits", {}), config)
    target = Target.model_validate_json(catalog.read(dataset, TARGET_FILE))
    known = [*task_kind(target.task).metric(target).compute(), "train_loss"]
    if config.stop.metric is not None and config.stop.metric not in known:
        raise ConfigError("train.stop.metric", nearest(config.stop.metric, known))
    if parents.all:
        transform = FittedTransform.model_validate_json(catalog.read(dataset, TRANSFORM_FILE))
        for parent in parents.all:
            parent.require_fit(transform, target)


def _require_rows(splits: dict[str, int], config: TrainConfig) -> None:
    for split in ("train", "validation"):
        if splits.get(split) == 0:
            raise DataError(f"the {split} split is empty; raise preprocess.split.{split} or add data")
    rows = splits.get("train")
    if rows is not None and rows < config.ranks:
        raise ConfigError("train.ranks", f"{config.ranks} ranks for {rows} training rows; at most one rank a row")
