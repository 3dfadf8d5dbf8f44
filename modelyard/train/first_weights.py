"""The first weights of a network of which no rank could hold more than a part.

Built on torch's meta device a network takes no memory. It is spread over ranks there, then each allocates its own part
(`parallelize.py`), and here each draws one weight after the other, whole, keeps its part and lets the rest go: it holds its
shards and the largest single weight, never the network. Weights that are there already are pages of files, of which a rank
copies its part.

All draws come from one generator in the order of the weights, as for a network that is built whole: the same bits, for any
strategy and any number of ranks. The price is that every rank makes all draws (docs/decisions/0038).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import distributed, nn
from torch.distributed.tensor import DTensor, Shard

from modelyard.models.build import build_model
from modelyard.models.config import CustomConfig, GptConfig, ModelConfig
from modelyard.models.gpt import Gpt
from modelyard.train.config import TrainConfig
from modelyard.train.memory import Weights
from modelyard.train.strategy_config import SHARDED

# Numbers, some seconds of drawing: ranks of unequal speed wait for each other well before a collective gives one up.
MEET_AFTER = 2**30


def whole_because(config: TrainConfig, network: ModelConfig, *, has_weights: bool) -> str:
    """Why each rank of a strategy that shards has to begin with the whole network; empty if none has to, or if ranks
    keep whole ones anyway.

    Args:
        has_weights: it begins with those of another model, or of a folder.
    """
    if config.strategy not in SHARDED:
        return ""
    has_to_look = config.init.keep_zeros or config.init.trains_a_part  # which of them stay
    if has_to_look or (has_weights and not isinstance(network, GptConfig)):
        return "it begins with weights that are there"
    if not isinstance(network, GptConfig):
        return f"{network.kind!r} cannot draw its weights one by one, as gpt can"
    if config.distill.hidden:
        return "its layers are held against a teacher's before it is sharded"
    if config.compile:
        return "train.compile is tried on it before it is sharded"
    return ""


def draws_one_by_one(config: TrainConfig, network: ModelConfig, *, has_weights: bool) -> bool:
    """Whether no rank ever holds more than its shards and one weight."""
    return config.strategy in SHARDED and not whole_because(config, network, has_weights=has_weights)


def weights_to_hold(
    config: TrainConfig, network: ModelConfig, input_width: int, output_width: int, *, has_weights: bool
) -> Weights | None:
    """What the memory of ranks is held against: the network's weights, counted without memory. None where that says
    nothing: a user's own network may not be built so, and of a network that is trained in part far less is held."""
    if isinstance(network, CustomConfig) or config.init.trains_a_part:
        return None
    with torch.device("meta"):
        sizes = [weight.numel() for weight in build_model(network, input_width, output_width).parameters()]
    return Weights(
        count=sum(sizes),
        largest=max(sizes) if draws_one_by_one(config, network, has_weights=has_weights) else None,
        whole=whole_because(config, network, has_weights=has_weights),
    )


def is_on_meta(network: nn.Module) -> bool:
    """Whether its weights have shapes and no values yet."""
    return any(weight.is_meta for weight in network.parameters())


@torch.no_grad()
def draw_(
    network: nn.Module, seed: int, alive: Callable[[], None], stored: dict[str, torch.Tensor] | None = None
) -> None:
    """Fill in what this rank holds of a network that was sharded without values. Every rank calls this.

    Args:
        stored: the values of all weights, which are let go one by one; None: they are drawn.
        alive: is called between weights: those of a large network take minutes.
    """
    assert isinstance(network, Gpt), "draws_one_by_one"
    generator, num_drawn = torch.Generator().manual_seed(seed), 0
    for name, weight in network.named_parameters():
        if stored is None:
            whole = torch.empty(weight.shape, dtype=weight.dtype)  # on the CPU: devices draw other numbers
            network.reset_weight_(name, whole, generator)
        else:
            whole = stored.pop(plain_name(name))
        held = weight.to_local() if isinstance(weight, DTensor) else weight
        held.copy_(own_part(whole, weight))
        num_drawn += whole.numel()
        del whole  # before the next one is allocated
        alive()
        if num_drawn >= MEET_AFTER:
            distributed.barrier()
            num_drawn = 0


def plain_name(name: str) -> str:
    """A weight's name in the network as it was before its blocks were wrapped to checkpoint activations."""
    return name.replace("_checkpoint_wrapped_module.", "")


def own_part(whole: torch.Tensor, held: torch.Tensor) -> torch.Tensor:
    """A view on what this rank holds of a weight. Inner dimensions of the mesh first: matrices are split before what is left
    of them is sharded, and torch cuts into chunks of which the last ones may be short or empty."""
    if not isinstance(held, DTensor):
        return whole
    mesh, part = held.device_mesh, whole
    for level in reversed(range(mesh.ndim)):
        placement = held.placements[level]
        if placement.is_replicate():
            continue
        dimension = cast("Shard", placement).dim  # weights are replicated or sharded
        chunks, place = part.chunk(mesh.size(level), dimension), mesh.get_local_rank(level)
        part = chunks[place] if place < len(chunks) else part.narrow(dimension, 0, 0)
    assert part.shape == held.to_local().shape, (part.shape, held.to_local().shape, held.placements)
    return part
