"""Which stepper a rank gets, by the strategy and the rank's place in it."""

from __future__ import annotations

from collections.abc import Callable

from torch import distributed

from modelyard.train.config import TrainConfig
from modelyard.train.diloco import DilocoStepper
from modelyard.train.parameter_server import ServerStepper, WorkerStepper
from modelyard.train.stepper import Stepper


def stepper_for(config: TrainConfig) -> Callable[..., Stepper]:
    """The class of this rank's stepper."""
    match config.strategy:
        case "parameter_server":
            num_workers = distributed.get_world_size() - config.parameter_server.servers
            return WorkerStepper if distributed.get_rank() < num_workers else ServerStepper
        case "diloco":
            return DilocoStepper
        case _:
            return Stepper


def describe(config: TrainConfig) -> str:
    """A strategy with what it depends on, for people."""
    match config.strategy:
        case "hsdp":
            return f"hsdp (copies of {config.hsdp.shards} shards)"
        case "tensor":
            return f"tensor (matrices split over {config.tensor.size})"
        case "parameter_server":
            own = config.parameter_server
            bound = f", staleness {own.staleness}" if own.mode == "asynchronous" else ""
            return f"parameter_server ({own.servers} of them servers, {own.mode}{bound})"
        case "diloco":
            return f"diloco (an outer step every {config.diloco.every_steps} steps)"
        case name:
            return name
