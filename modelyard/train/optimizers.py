"""Optimizers by name: torch's own, fused into one kernel where torch has that for the device."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from modelyard.train.config import OptimizerConfig

FUSED_DEVICES = {"cpu", "cuda", "xpu", "mps"}


def build_optimizers(
    config: OptimizerConfig,
    network: nn.Module,
    device: torch.device,
    is_ours: Callable[[nn.Parameter], bool] = lambda _: True,
) -> list[Optimizer]:
    """The optimizers that step together: one, or for ``muon`` one for hidden matrices and one for the rest.

    Args:
        is_ours: says which of the network's parameters they move.
    """
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad and is_ours(parameter)]
    if config.name != "muon":
        return [_build(config, parameters, device)]
    hidden = [parameter for parameter in hidden_matrices(network) if is_ours(parameter)]
    chosen = {id(parameter) for parameter in hidden}
    rest = [parameter for parameter in parameters if id(parameter) not in chosen]
    built: list[Optimizer] = []
    # "match_rms_adamw" scales updates to adamw's size (Liu et al. 2025, arXiv 2502.16982): one rate serves both.
    if hidden:
        built.append(torch.optim.Muon(hidden, **_rate(config), adjust_lr_fn="match_rms_adamw"))
    if rest:
        built.append(_build(config.model_copy(update={"name": "adamw"}), rest, device))
    return built


def hidden_matrices(network: nn.Module) -> list[nn.Parameter]:
    """Weights that Muon is made for: two-dimensional, neither an embedding nor the last one, which makes the outputs
    (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon)."""
    embeddings = {id(module.weight) for module in network.modules() if isinstance(module, nn.Embedding)}
    matrices = [weight for weight in network.parameters() if weight.ndim == 2 and weight.requires_grad]
    return [weight for weight in matrices[:-1] if id(weight) not in embeddings]


def _build(config: OptimizerConfig, parameters: Iterable[nn.Parameter], device: torch.device) -> Optimizer:
    fused = device.type in FUSED_DEVICES
    match config.name:
        case "gd" | "sgd":
            own = {"momentum": config.momentum, "nesterov": config.nesterov}
            return torch.optim.SGD(parameters, **_rate(config), **own, fused=fused)
        case "adagrad":
            return torch.optim.Adagrad(parameters, **_rate(config), fused=fused and device.type == "cpu")
        case "rmsprop":
            return torch.optim.RMSprop(parameters, **_rate(config), momentum=config.momentum)
        case "adamw":
            return torch.optim.AdamW(parameters, **_rate(config), fused=fused)
        case _:
            return torch.optim.Adam(parameters, **_rate(config), fused=fused)


def _rate(config: OptimizerConfig) -> dict[str, Any]:
    return {"lr": config.learning_rate, "weight_decay": config.weight_decay}
