"""A network of `transformers` as the config names it, made whole before ranks are started: which class, every key of its
configuration, and that it reads what the data set's tokenizer writes."""

from __future__ import annotations

import json
from typing import Any

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Catalog, Origin
from modelyard.errors import ConfigError
from modelyard.models.config import AUTO_CLASSES, HuggingFaceConfig, ModelConfig, RecommenderConfig, ReshapedConfig
from modelyard.pretrained import (
    CONFIG_FILE,
    MODULES_FILE,
    POOLING_FILE,
    TOKENIZER_FILE,
    plain_tokenizer,
    sha256_of,
    take_in,
)
from modelyard.task_kinds import Target
from modelyard.train.config import TrainConfig
from modelyard.transform import TextTransform

SOURCE_FIELD = "train.model.source"
# Keys of sentence-transformers' pooling -> ours.
POOLING_KEYS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "last",
}


def pretrained_of(catalog: Catalog, config: TrainConfig, origin: Origin) -> ArtifactRef | None:
    """What the network's source holds today, as an artifact; None where the config names none.

    Raises:
        ConfigError, DataError, NotFound: it cannot be taken (`modelyard.pretrained.take_in`).
    """
    network = config.model
    if not isinstance(network, HuggingFaceConfig) or not network.source:
        return None
    return take_in(catalog, network.source, SOURCE_FIELD, origin).ref


def whole_network(
    catalog: Catalog,
    network: HuggingFaceConfig,
    pretrained: ArtifactRef | None,
    transform: TextTransform,
    target: Target,
) -> HuggingFaceConfig:
    """The config with nothing left open.

    Raises:
        ConfigError: the network cannot read the data set's tokens, or there is no class for the task.
    """
    if not network.auto_class and target.task not in AUTO_CLASSES:
        raise ConfigError("train.model.auto_class", f"say which class of transformers is for {target.task}")
    keys: dict[str, Any] = {"vocab_size": transform.vocabulary, "pad_token_id": transform.pad}
    if pretrained is not None:
        _require_tokenizer(catalog, pretrained, network, transform)
        keys |= {
            name: value
            for name, value in json.loads(catalog.read(pretrained, CONFIG_FILE)).items()
            if value is not None or name not in keys
        }
    keys |= network.config
    _require_room(keys, network, transform)
    auto_class = network.auto_class or AUTO_CLASSES[target.task]
    ends = _pooling(catalog, network, pretrained) if target.task == "embedding" else {"pooling": "", "normalise": None}
    return network.model_copy(update={"config": keys, "auto_class": auto_class, "source": "", **ends})


def vector_target(network: ModelConfig, target: Target) -> Target:
    """The target as a model has it: where the answers are vectors, with their width.

    Raises:
        ConfigError: the network does not say it.
    """
    if target.task not in ("embedding", "retrieval"):
        return target
    own = network.base if isinstance(network, ReshapedConfig) else network
    if isinstance(own, RecommenderConfig):
        return target.model_copy(update={"width": own.vector_width})
    keys = own.config if isinstance(own, HuggingFaceConfig) else {}
    found = next((keys[key] for key in ("hidden_size", "d_model", "dim") if key in keys), None)
    if not isinstance(found, int):
        raise ConfigError("train.model.config", "config.json does not say hidden_size: how wide its vectors are")
    return target.model_copy(update={"width": found})


def _pooling(catalog: Catalog, network: HuggingFaceConfig, pretrained: ArtifactRef | None) -> dict[str, Any]:
    """How tokens' vectors become a text's, as sentence-transformers writes it beside a network, or as the config says."""

    def read(name: str) -> Any:
        there = pretrained is not None and name in catalog.manifest(pretrained).content.files
        return json.loads(catalog.read(pretrained, name)) if pretrained and there else None

    parts = [str(part["type"]).rpartition(".")[2] for part in read(MODULES_FILE) or []]
    if strange := [part for part in parts if part not in ("Transformer", "Pooling", "Normalize")]:
        raise ConfigError(
            SOURCE_FIELD, f"{network.source} has a part that Modelyard does not know: {', '.join(strange)}"
        )
    said = read(POOLING_FILE) or {}
    modes = [said["pooling_mode"]] if isinstance(said.get("pooling_mode"), str) else []
    modes += [mode for key, mode in POOLING_KEYS.items() if said.get(key)]
    pooling = network.pooling or (modes[0] if len(modes) == 1 else "")
    if pooling not in POOLING_KEYS.values():
        found = f"{network.source} says {', '.join(modes)}" if modes else f"{network.source or 'nothing'} does not say"
        raise ConfigError(
            "train.model.pooling", f"how do tokens become a text's vector? {found}: take mean, cls, max or last"
        )
    return {"pooling": pooling, "normalise": "Normalize" in parts if network.normalise is None else network.normalise}


def _require_tokenizer(
    catalog: Catalog, pretrained: ArtifactRef, network: HuggingFaceConfig, transform: TextTransform
) -> None:
    if TOKENIZER_FILE not in catalog.manifest(pretrained).content.files:
        return  # nobody can tell
    own = sha256_of(plain_tokenizer(catalog.read(pretrained, TOKENIZER_FILE), network.source))
    if own != transform.tokenizer_sha256:
        raise ConfigError(
            SOURCE_FIELD,
            f"{network.source} has another tokenizer ({own[:12]}) than the data set ({transform.tokenizer_sha256[:12]}):"
            " numbers would mean other words; name the same folder in preprocess.transform.text.source",
        )


def _require_room(keys: dict[str, Any], network: HuggingFaceConfig, transform: TextTransform) -> None:
    where = network.source or "train.model.config"
    for key, needed, what in (
        ("vocab_size", transform.vocabulary, "tokens of the data set's tokenizer"),
        ("max_position_embeddings", transform.max_length, "tokens of a row (preprocess.transform.text.max_length)"),
    ):
        has = keys.get(key)
        if isinstance(has, int) and has < needed:
            raise ConfigError("train.model.config", f"{key} of {where} is {has}, fewer than the {needed} {what}")
