"""Optimizers by name: torch's own, fused into one kernel where torch has that for the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from modelyard.train.sections import OptimizerConfig

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
    if tables := [table for table in sparse_tables(network) if table.requires_grad and is_ours(table)]:
        own = {id(table) for table in tables}
        rest = [parameter for parameter in parameters if id(parameter) not in own]
        return [_of_tables(config, tables), *([_build(config, rest, device)] if rest else [])]
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


def sparse_tables(network: nn.Module) -> list[nn.Parameter]:
    """Weights whose gradients hold only the rows that a batch names."""
    tables = [module for module in network.modules() if isinstance(module, nn.Embedding) and module.sparse]
    return [cast("nn.Parameter", table.weight) for table in tables]


def hidden_matrices(network: nn.Module) -> list[nn.Parameter]:
    """Weights that Muon is made for: two-dimensional, neither an embedding nor the last one, which makes the outputs
    (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon)."""
    embeddings = {id(module.weight) for module in network.modules() if isinstance(module, nn.Embedding)}
    matrices = [weight for weight in network.parameters() if weight.ndim == 2 and weight.requires_grad]
    return [weight for weight in matrices[:-1] if id(weight) not in embeddings]


def _build(config: OptimizerConfig, parameters: Sequence[nn.Parameter], device: torch.device) -> Optimizer:
    fused = device.type in FUSED_DEVICES
    # Of the fused ones torch spreads Adam's alone over shards.
    fused_of_whole = fused and not any(isinstance(parameter, DTensor) for parameter in parameters)
    match config.name:
        case "gd" | "sgd":
            own = {"momentum": config.momentum, "nesterov": config.nesterov}
            return torch.optim.SGD(parameters, **_rate(config), **own, fused=fused_of_whole)
        case "adagrad":
            return torch.optim.Adagrad(parameters, **_rate(config), fused=fused_of_whole and device.type == "cpu")
        case "rmsprop":
            return torch.optim.RMSprop(parameters, **_rate(config), momentum=config.momentum)
        case "adamw":
            return torch.optim.AdamW(parameters, **_rate(config), fused=fused)
        case _:
            return torch.optim.Adam(parameters, **_rate(config), fused=fused)


def _of_tables(config: OptimizerConfig, tables: Sequence[nn.Parameter]) -> Optimizer:
    """What takes gradients of some rows; `modelyard.train.config` refuses other names."""
    match config.name:
        case "sgd":
            return torch.optim.SGD(tables, lr=config.learning_rate)
        case "adagrad":
            return torch.optim.Adagrad(tables, lr=config.learning_rate)
        case _:
            return SparseAdam(tables, lr=config.learning_rate)


class SparseAdam(torch.optim.SparseAdam):
    """torch's, whose count of steps is a tensor like every other state: a checkpoint holds tensors. A whole gradient, as a
    server of parameters is sent one, counts for the rows that are not zero: what one process would do."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for table in (one for group in self.param_groups for one in group["params"]):
            if table.grad is not None and not table.grad.is_sparse:
                table.grad = table.grad.to_sparse(1)
        for state in self.state.values():
            state["step"] = int(state["step"])
        answer = super().step(closure)
        for state in self.state.values():
            state["step"] = torch.tensor(float(state["step"]))
        return answer


def _rate(config: OptimizerConfig) -> dict[str, Any]:
    return {"lr": config.learning_rate, "weight_decay": config.weight_decay}
