"""A network that others trained, published as it comes: an import. No rank is started."""

from __future__ import annotations

import json

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Attempt, Catalog
from modelyard.datasets import TARGET_FILE, TRANSFORM_FILE
from modelyard.errors import ConfigError
from modelyard.models.config import HuggingFaceConfig, ModelSpec
from modelyard.models.transformer import load_pretrained
from modelyard.models.weights import Held
from modelyard.pretrained import CONFIG_FILE
from modelyard.task_kinds import Target, task_kind
from modelyard.train.config import TrainConfig
from modelyard.train.pretrained_network import vector_target, whole_network
from modelyard.train.publish import add_library_files, add_network
from modelyard.train.stage import HISTORY_FILE
from modelyard.train.starting import read_transform
from modelyard.transform import TextTransform

FIELD = "train.stop.max_steps"


def take_as_it_is(
    catalog: Catalog, attempt: Attempt, dataset: ArtifactRef, config: TrainConfig, pretrained: ArtifactRef | None
) -> None:
    """Fill an attempt with a pretrained network and the data set's way to read and answer.

    Raises:
        ConfigError: there is no network that comes with weights, some of its weights would be random, or its answers
            would mean something else than the data set's.
    """
    transform = read_transform(catalog.read(dataset, TRANSFORM_FILE))
    target = Target.model_validate_json(catalog.read(dataset, TARGET_FILE))
    network = config.model
    if pretrained is None or not isinstance(network, HuggingFaceConfig) or not isinstance(transform, TextTransform):
        raise ConfigError(
            FIELD,
            "0 steps publish a network as it comes: that takes train.model.kind huggingface, with a source, and texts",
        )
    whole = whole_network(catalog, network, pretrained, transform, target)
    target = vector_target(whole, target)
    _require_same_answers(json.loads(catalog.read(pretrained, CONFIG_FILE)), target)
    width = task_kind(target.task).output_width(target)
    catalog.fetch(pretrained, attempt.scratch / "pretrained")
    made, fresh = load_pretrained(whole, width, attempt.scratch / "pretrained")
    # Of a network for embedding the pooler is not used: some folders have it, some do not.
    if missing := [name for name in fresh if not name.startswith("pooler.")]:
        raise ConfigError(
            FIELD, f"{network.source} lacks {', '.join(missing[:3])}: random weights answer nothing; train it"
        )
    spec = ModelSpec(model=whole, input_width=transform.width, output_width=width)
    add_network(attempt, spec, Held(made.state_dict()), config.max_shard_bytes)
    attempt.add_json(TRANSFORM_FILE, transform.model_dump(mode="json"))
    attempt.add_json(TARGET_FILE, target.model_dump(mode="json"))
    attempt.add_json(HISTORY_FILE, [])
    add_library_files(attempt, spec, transform, target)
    attempt.facts.update(
        metrics={}, headline="", epochs=0.0, steps=0, stopped_by="stop.max_steps",
        parameters=sum(weight.numel() for weight in made.parameters()),
    )  # fmt: skip


def _require_same_answers(settings: dict[str, object], target: Target) -> None:
    """A classifier's outputs are named in its config.json; they have to be the data set's classes in their order."""
    named = settings.get("id2label")
    own = list(named.values()) if isinstance(named, dict) else []
    if target.classes and own != [str(label) for label in target.classes]:
        told = ", ".join(map(str, own[:5])) or "none"
        wanted = ", ".join(map(str, target.classes[:5]))
        raise ConfigError(FIELD, f"the network's classes are {told}, the data set's {wanted}: rename them, or train it")
