"""What only a rank can see that it cannot work: said before the first step."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import torch
from torch import distributed, nn

from modelyard.errors import ConfigError
from modelyard.train.config import TrainConfig
from modelyard.train.devices import free_bytes
from modelyard.train.first_weights import weights_to_hold
from modelyard.train.memory import Room, free_memory, require_memory
from modelyard.train.optimizers import sparse_tables
from modelyard.train.rows import Batch, Rows


def require_room(
    config: TrainConfig, input_width: int, output_width: int, device: torch.device, *, has_weights: bool
) -> None:
    """Refuse a network that this rank's device, or its machine, cannot hold, where the launching process could not look.
    Every rank calls this, and none goes on to take memory before all have looked.

    Raises:
        ConfigError: with the estimate and what there is.
    """
    if device.type == "cpu" and config.launcher == "torch" and not config.meets:
        return
    weights = weights_to_hold(config, config.model, input_width, output_width, has_weights=has_weights)
    if weights:
        speaks = os.environ.get("LOCAL_RANK", "0") == "0"  # one rank for each machine
        room = Room(
            host=free_memory() if speaks else math.inf,
            ranks=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
            device=None if device.type == "cpu" else free_bytes(device),
            name=str(device),
        )
        require_memory(config, weights, room)
    distributed.barrier()


def require_sums(config: TrainConfig, network: nn.Module, device: torch.device) -> None:
    """Refuse what a device's ranks cannot sum: gradients of some rows gloo sums, on CPUs; parameter servers send whole ones.

    Raises:
        ConfigError: names the key of the network.
    """
    summed = config.strategy == "ddp" and distributed.get_world_size() > 1 and device.type != "cpu"
    if summed and sparse_tables(network):
        raise ConfigError(
            "train.model.sparse",
            f"ranks on {device.type} cannot sum gradients of some rows: sparse: false, or one rank",
        )


def require_outputs(shape: Sequence[int], example: torch.Tensor, width: int, axes: Sequence[str] = ()) -> None:
    """Refuse a network whose outputs do not fit the target, before it is trained: a label would lie out of range.

    Args:
        shape: of what it made of ``example``.
        axes: of the outputs between rows and width: ``t``, one for each token; or a number.

    Raises:
        ConfigError: names both shapes.
    """
    # A row of tokens has an answer for each of them.
    sizes = tuple(example.shape[1] if axis == "t" else int(axis) for axis in axes)
    if tuple(shape[1:]) != (*sizes, width):
        found = f"({', '.join(['n', *map(str, shape[1:])])})"
        raise ConfigError(
            "train.model", f"the network's outputs are {found}, the target needs ({', '.join(['n', *axes])}, {width})"
        )


def first_rows(rows: Rows) -> Batch:
    """Two, if there are as many."""
    return rows.batch(torch.arange(min(2, len(rows))))
