"""Training a part of a network alone: low-rank adapters beside its linear layers, or some of its weights.

Adapters are `peft`'s (LoRA; Hu et al. 2021, arXiv 2106.09685): a layer's weights W stay, and what is learned is added to
them as (alpha / rank) B A. What is not trained is in no checkpoint, and no gradient or optimizer state is kept for it.
When the model is published, adapters are added up into the weights: nobody behind training knows of them.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from importlib.util import find_spec

import torch
from torch import nn

from modelyard.errors import ConfigError, MissingExtra
from modelyard.models.reshape import replace_
from modelyard.train.sections import InitConfig, LoraConfig

LORA_FIELD, FREEZE_FIELD = "train.init.lora.targets", "train.init.freeze"


def prepare_(network: nn.Module, config: InitConfig, fresh: Collection[str]) -> nn.Module:
    """Make the parts of a network trainable that the config says; the same network.

    Args:
        fresh: weights that are new, by their names in ``network``: whatever else stays as it is, they are trained.

    Raises:
        ConfigError: no layer of a name that the config gives, with the nearest there are; or nothing would be trained.
        MissingExtra: `peft` is not installed.
    """
    if config.lora:
        _add_adapters_(network, config.lora, fresh)
    _freeze_(network, config.freeze)
    for name, weight in network.named_parameters():
        if name in fresh:
            weight.requires_grad = True
    if not any(weight.requires_grad for weight in network.parameters()):
        raise ConfigError(FREEZE_FIELD, f"{', '.join(config.freeze)} leave nothing to train")
    return network


def require_names(network: nn.Module, config: InitConfig, fresh: Collection[str] = ()) -> None:
    """What `prepare_` refuses, without a change to the network; it may be on torch's meta device.

    Raises:
        ConfigError, MissingExtra: as `prepare_`.
    """
    if config.lora:
        _require_peft()
        _chosen(network, config.lora, fresh)
    _frozen(network, config.freeze)


def merge_(network: nn.Module, trained: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """All weights of the plain network, after those that were trained took their places.

    Args:
        network: as it was when training began, prepared.
        trained: what the checkpoint holds.
    """
    missing, unexpected = network.load_state_dict(dict(trained), strict=False)
    assert not unexpected, unexpected
    held = {name for name, weight in network.named_parameters() if weight.requires_grad}
    assert not held & set(missing), held & set(missing)
    if any("lora_" in name for name in trained):
        from peft.tuners.tuners_utils import BaseTunerLayer

        for name, module in list(network.named_modules()):
            if isinstance(module, BaseTunerLayer):
                module.merge(safe_merge=True)
                replace_(network, name, module.get_base_layer())
    return network.state_dict()


def _add_adapters_(network: nn.Module, config: LoraConfig, fresh: Collection[str]) -> None:
    _require_peft()
    from peft import LoraConfig as Adapters
    from peft import inject_adapter_in_model

    chosen = _chosen(network, config, fresh)
    adapters = Adapters(
        r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=chosen, bias="none"
    )
    inject_adapter_in_model(adapters, network)


def _chosen(network: nn.Module, config: LoraConfig, fresh: Collection[str]) -> list[str]:
    """Names of the linear layers that get an adapter: those said, else all that are not new."""
    new = {name.rpartition(".")[0] for name in fresh}
    linears = [name for name, part in network.named_modules() if isinstance(part, nn.Linear) and name not in new]
    if not config.targets:
        return linears
    return _named(linears, config.targets, LORA_FIELD, "linear layer")


def _freeze_(network: nn.Module, names: Sequence[str]) -> None:
    for name in _frozen(network, names):
        network.get_submodule(name).requires_grad_(requires_grad=False)


def _frozen(network: nn.Module, names: Sequence[str]) -> list[str]:
    parts = [name for name, part in network.named_modules() if name and any(True for _ in part.parameters())]
    return _named(parts, names, FREEZE_FIELD, "part") if names else []


def _named(known: Sequence[str], wanted: Sequence[str], field: str, what: str) -> list[str]:
    """Those of some dotted names that end as one of the wanted ones does.

    Raises:
        ConfigError: one of the wanted ones is none of them.
    """
    found: dict[str, None] = {}
    for name in wanted:
        matching = [one for one in known if one == name or one.endswith(f".{name}")]
        if not matching:
            ends = sorted({one.rpartition(".")[2] for one in known if not one.rpartition(".")[2].isdigit()})
            close = difflib.get_close_matches(name, [*ends, *known], n=3)
            hint = f"did you mean {', '.join(close)}? " if close else ""
            raise ConfigError(field, f"the network has no {what} {name!r}; {hint}There are {', '.join(ends[:12])}")
        found |= dict.fromkeys(matching)
    return list(found)


def _require_peft() -> None:
    if find_spec("peft") is None:
        raise MissingExtra("peft", "transformers", "train.init.lora")
