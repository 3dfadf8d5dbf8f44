"""From a config to a network, and from a folder of a model artifact back to the trained one."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from modelyard.errors import ConfigError, DataError
from modelyard.models.cnn import Cnn
from modelyard.models.config import (
    MODEL_FILE,
    WEIGHTS_FILE,
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


def save_model(spec: ModelSpec, weights: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Write `model.json` and `model.safetensors`; the same weights give the same bytes."""
    (folder / MODEL_FILE).write_text(spec.model_dump_json(indent=1))
    prefix = _prefix(spec)
    tensors = {name.removeprefix(prefix): tensor.contiguous() for name, tensor in sorted(weights.items())}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})  # transformers asks for it


def load_model(folder: Path) -> nn.Module:
    """The trained network of a fetched model artifact, in evaluation mode, on the CPU.

    Raises:
        DataError: weights that do not belong to the network that `model.json` describes.
    """
    spec = ModelSpec.model_validate_json((folder / MODEL_FILE).read_bytes())
    model = build_model(spec.model, spec.input_width, spec.output_width)
    try:
        prefix = _prefix(spec)
        model.load_state_dict({f"{prefix}{name}": value for name, value in load_file(folder / WEIGHTS_FILE).items()})
    except (RuntimeError, SafetensorError) as failure:
        raise DataError(f"{WEIGHTS_FILE} does not fit the network in {MODEL_FILE}: {failure}") from failure
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
