"""From a config to a network, and from a folder of a model artifact back to the trained one."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import nn

from modelyard.errors import ConfigError, DataError
from modelyard.models.cnn import Cnn
from modelyard.models.config import (
    MODEL_FILE,
    CustomConfig,
    GptConfig,
    HuggingFaceConfig,
    MlpConfig,
    ModelConfig,
    ModelSpec,
    RecommenderConfig,
    ReshapedConfig,
)
from modelyard.models.gpt import Gpt
from modelyard.models.mlp import Mlp
from modelyard.models.recommender import Recommender
from modelyard.models.reshape import reshape_
from modelyard.models.simulate import simulate_
from modelyard.models.weights import MAX_SHARD_BYTES, Held, Source, StoredWeights, written


def build_model(config: ModelConfig, input_width: int, output_width: int) -> nn.Module:
    """An untrained network, initialised from torch's global generator.

    Raises:
        ConfigError: a custom factory that cannot be imported, or that returns something else; a network that
            `transformers` cannot build.
        DataError: a reshaped network without the layers that were reshaped.
    """
    if isinstance(config, ReshapedConfig):
        return simulate_(
            reshape_(build_model(config.base, input_width, output_width), config.linears), config.simulated
        )
    if isinstance(config, CustomConfig):
        return _build_custom(config, input_width, output_width)
    if isinstance(config, GptConfig):
        return Gpt(config, output_width)
    if isinstance(config, HuggingFaceConfig):
        from modelyard.models.transformer import build_transformer  # transformers: seconds, and an extra

        return build_transformer(config, output_width)
    if isinstance(config, MlpConfig):
        return Mlp(config, input_width, output_width)
    return Recommender(config, output_width) if isinstance(config, RecommenderConfig) else Cnn(config, output_width)


def save_model(
    spec: ModelSpec, weights: Mapping[str, torch.Tensor], folder: Path, max_shard_bytes: int = MAX_SHARD_BYTES
) -> list[str]:
    """Write `model.json` and the weights, as `modelyard.models.weights` lays them out; the files' names."""
    return list(model_written(spec, Held(weights), folder, max_shard_bytes))


def model_written(
    spec: ModelSpec, weights: Source, folder: Path, max_shard_bytes: int = MAX_SHARD_BYTES
) -> Iterator[str]:
    """The same file by file, each named once it stands: at most one file's weights are held at a time."""
    (folder / MODEL_FILE).write_text(spec.model_dump_json(indent=1))
    yield MODEL_FILE
    metadata = {"format": "pt"}  # transformers asks for it
    yield from written(weights, folder, max_shard_bytes, prefix=_prefix(spec), metadata=metadata)


def load_model(folder: Path) -> nn.Module:
    """The trained network of a fetched model artifact, in evaluation mode, on the CPU. A language model whose weights are in
    several files takes no memory of its own: what it computes with is read from the disk, and may be dropped again.

    Raises:
        DataError: weights that do not belong to the network that `model.json` describes, or are not whole
            (`modelyard.models.weights.StoredWeights`).
    """
    spec = ModelSpec.model_validate_json((folder / MODEL_FILE).read_bytes())
    stored, prefix = StoredWeights(folder), _prefix(spec)
    stays_on_disk = stored.is_sharded and isinstance(spec.model, GptConfig)  # which has no buffers: all of it is there
    with torch.device("meta") if stays_on_disk else nullcontext():
        model = build_model(spec.model, spec.input_width, spec.output_width)
    try:
        tensors = {f"{prefix}{name}": value for name, value in stored.tensors().items()}
        model.load_state_dict(tensors, assign=stays_on_disk)
    except RuntimeError as failure:
        raise DataError(f"{stored.name} does not fit the network in {MODEL_FILE}: {failure}") from failure
    return model.eval()


def _prefix(spec: ModelSpec) -> str:
    """What our names of weights have before those that `transformers` knows them by."""
    return "network." if isinstance(spec.network, HuggingFaceConfig) else ""


def _build_custom(config: CustomConfig, input_width: int, output_width: int) -> nn.Module:
    module, _, name = config.factory.partition(":")
    try:
        factory = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as failure:
        raise ConfigError("train.model.factory", f"{config.factory!r} cannot be imported: {failure}") from failure
    model = factory(input_width=input_width, output_width=output_width, **config.options)
    if not isinstance(model, nn.Module):
        raise ConfigError("train.model.factory", f"{config.factory!r} returned {type(model).__name__}, not a Module")
    return model
