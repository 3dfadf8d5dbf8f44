"""Presets: the whole configuration of a lifecycle as one typed tree, checked before anything runs.

A preset is a YAML file of this tree: one in `deployments/presets/` by its name, or any other by path or ``s3://`` URI.
A run names a preset and may override single keys: ``train.max_epochs=5``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

import modelyard
from modelyard.artifacts import Frozen
from modelyard.compress import CompressConfig
from modelyard.errors import ConfigError
from modelyard.evaluate import EvaluateConfig, judged_metrics
from modelyard.nearest import nearest
from modelyard.preprocess import PreprocessConfig
from modelyard.rollout import RolloutConfig
from modelyard.storage import Store
from modelyard.task_kinds import LANGUAGE_TASKS, Target, headline_of, task_kind
from modelyard.train import TrainConfig
from modelyard.tune import TuneConfig
from modelyard.tune.space import Problems, changed, require_space, value_at, whole_numbers
from modelyard.wrong_keys import SAY_IT_THEMSELVES, key_of, sentence_of, unbounded

PRESETS = Path(modelyard.__file__).resolve().parent.parent / "deployments" / "presets"
OWN_BUCKET = "s3://{bucket}"


class LifecycleConfig(Frozen):
    """From a data set to a served model.

    Attributes:
        model_name: name in the registry and on the endpoint.
        dataset_uri: where the raw data lies: ``s3://bucket/folder/*.parquet``.
    """

    model_name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")
    dataset_uri: str
    preprocess: PreprocessConfig
    train: TrainConfig = TrainConfig()
    compress: CompressConfig = CompressConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    rollout: RolloutConfig = RolloutConfig()
    tune: TuneConfig = TuneConfig()

    @property
    def tuned_metric(self) -> str:
        """The metric of the validation split that trials are compared by."""
        own = Target(task=self.preprocess.task, column=self.preprocess.target, similarity=self.preprocess.similarity)
        return self.tune.metric or self.train.stop.metric or headline_of(own)

    @property
    def tuned_now(self) -> dict[str, Any]:
        """What the configuration says of the keys that are tuned."""
        tree = self.model_dump(mode="json")
        return {key: value_at(tree, key) for key in self.tune.space}

    @property
    def tuned_whole_numbers(self) -> set[str]:
        """Keys that are tuned and take whole numbers only."""
        return whole_numbers(self.tune.space, _tunable_tree(self), _problems_of)


def load_preset(name: str, store: Store, overrides: Sequence[str] = ()) -> LifecycleConfig:
    """Read a preset and apply overrides.

    Args:
        name: ``digits``, a path or an ``s3://`` URI.
        store: where ``s3://`` presets are read; ``s3://{bucket}`` at the beginning of any value becomes its bucket.
        overrides: ``dotted.key=value``; the value is read as YAML, so ``[64, 32]`` and ``null`` work.

    Raises:
        ConfigError: no such preset, an unknown key, a value that does not fit; names the field.
    """
    tree = _read_tree(name, store)
    for override in overrides:
        _apply(tree, override)
    tree = _in_bucket(tree, store.root)
    return _validated(tree, f"preset {name!r}")


def require_lifecycle(config: LifecycleConfig) -> None:
    """Refuse what a lifecycle would find out after its training: a task that is not served, a metric the task does not have.

    Raises:
        ConfigError: names the key.
    """
    task = config.preprocess.task
    if task in LANGUAGE_TASKS:
        raise ConfigError(
            "preprocess.task", f"{task} is trained and judged, and not served yet: run the deployment train/digits"
        )
    known = judged_metrics(task, has_similarity=bool(config.preprocess.similarity))
    if config.evaluate.metric not in known:
        raise ConfigError("evaluate.metric", f"{task} has no {config.evaluate.metric}; it has {', '.join(known)}")


def require_tuning(config: LifecycleConfig) -> None:
    """Refuse a space or a metric that does not fit the rest. For who tunes: a run that does not may change the network
    whatever the preset's space says.

    Raises:
        ConfigError: names key and value.
    """
    require_space(config.tune.space, _tunable_tree(config), _problems_of)
    if config.tune.metric is None:
        return
    task = config.preprocess.task
    likeness = config.preprocess.similarity
    example = Target(task=task, column="target", classes=[0, 1], token_bytes=[1], similarity=likeness)
    known = list(task_kind(task).metric(example).compute())
    if config.tune.metric not in known:
        raise ConfigError("tune.metric", f"{nearest(config.tune.metric, known)} ({task}, on the validation split)")


def trial_config(config: LifecycleConfig, parameters: Mapping[str, Any]) -> LifecycleConfig:
    """A configuration as one trial of its tuning has it: trained to its limits, for the metric that is tuned for.

    Raises:
        ConfigError: the values do not go together.
    """
    decided = {"train.target": None, "train.stop.metric": config.tuned_metric}
    tree = changed(config.model_dump(mode="json", exclude_unset=True), {**parameters, **decided}, _tunable_tree(config))
    tree.pop("tune", None)
    return _validated(tree, "a trial")


def preset_text(config: LifecycleConfig, comment: str) -> str:
    """A configuration as a preset of its own: what it says, without what it leaves to defaults."""
    tree = config.model_dump(mode="json", exclude_unset=True)
    return "".join(f"# {line}\n" for line in comment.splitlines()) + yaml.safe_dump(tree, sort_keys=False)


def preset_names() -> list[str]:
    """The presets that come with this installation."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def _validated(tree: Mapping[str, Any], where: str) -> LifecycleConfig:
    try:
        config = LifecycleConfig.model_validate(tree)
    except ValidationError as invalid:
        first = invalid.errors()[0]
        field = key_of(first["loc"], LifecycleConfig) or "preset"
        got = "" if first["type"] in SAY_IT_THEMSELVES else f"got {first['input']!r}, "
        raise ConfigError(field, f"{sentence_of(first, LifecycleConfig)} ({got}{where})") from None
    for field, value in unbounded(config.model_dump()):
        raise ConfigError(
            field, f"{value} is no number that can be kept: a finite one, or null where there is no bound"
        )
    return config


def _tunable_tree(config: LifecycleConfig) -> dict[str, Any]:
    """Everything the configuration says, defaults included, without the tuning itself."""
    return config.model_dump(mode="json", exclude={"tune"})


def _problems_of(tree: Mapping[str, Any]) -> Problems:
    try:
        LifecycleConfig.model_validate(tree)
    except ValidationError as invalid:
        return [(tuple(map(str, one["loc"])), one["msg"], one["type"] == "extra_forbidden") for one in invalid.errors()]
    return []


def _read_tree(name: str, store: Store) -> dict[str, Any]:
    if name.startswith("s3://"):
        text = store.get(name).decode()
    else:
        path = PRESETS / f"{name}.yaml" if "/" not in name and not name.endswith(".yaml") else Path(name)
        if not path.is_file():
            raise ConfigError("preset", f"{name!r} is not there; known: {', '.join(preset_names())}, a path or a URI")
        text = path.read_text()
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as failure:
        raise ConfigError("preset", f"{name!r} is not YAML: {failure}") from failure
    if not isinstance(tree, dict):
        raise ConfigError("preset", f"{name!r} is not a mapping of keys")
    return tree


def _in_bucket(value: Any, root: str) -> Any:
    """The same tree with addresses in the installation's own bucket."""
    if isinstance(value, dict):
        return {key: _in_bucket(one, root) for key, one in value.items()}
    if isinstance(value, list):
        return [_in_bucket(one, root) for one in value]
    if isinstance(value, str) and value.startswith(OWN_BUCKET):
        return root + value.removeprefix(OWN_BUCKET)
    return value


def _apply(tree: dict[str, Any], override: str) -> None:
    path, equals, value = override.partition("=")
    if not equals or not path.strip():
        raise ConfigError("overrides", f"{override!r} is not of the form dotted.key=value")
    *parents, leaf = path.strip().split(".")
    node = tree
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise ConfigError(path.strip(), f"{parent!r} is a single value, it has no keys below it")
    try:
        node[leaf] = yaml.safe_load(value)
    except yaml.YAMLError as failure:
        raise ConfigError(path.strip(), f"{value!r} is not a YAML value: {failure}") from failure
