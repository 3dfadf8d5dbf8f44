"""How a training is spread over ranks, and who starts them. Torch is not imported here."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from modelyard.artifacts import Frozen
from modelyard.nearest import one_of
from modelyard.ray_cluster import ray_address

StrategyName = Literal["ddp", "fsdp", "hsdp", "tensor", "parameter_server", "diloco"]
SHARDED = {"fsdp", "hsdp", "tensor"}  # no rank has whole weights
LauncherName = Literal["torch", "ray"]
# Accelerators as torch names them; one whose name a plug-in gives it is taken by `auto`.
DeviceName = Literal["auto", "cpu", "cuda", "xpu", "mps", "mtia"]
ServerMode = Literal["synchronous", "asynchronous"]


class FsdpConfig(Frozen):
    """Options of ``strategy: fsdp``, and of what shards besides: ``hsdp`` and ``tensor``.

    Attributes:
        reshard: free a layer's gathered weights after its forward pass (less memory, one gather more).
        checkpoint_activations: keep only each layer's input and compute the rest again on the way back.
        reduce_in_fp32: sum gradients in fp32 whatever ``precision`` is.
    """

    reshard: bool = True
    checkpoint_activations: bool = False
    reduce_in_fp32: bool = True


class HsdpConfig(Frozen):
    """Options of ``strategy: hsdp``: shards within groups of ranks, copies across groups.

    Attributes:
        shards: ranks that share one copy (those of one machine, say); ``ranks`` is a multiple.
    """

    shards: int = Field(2, ge=1, le=64)


class TensorConfig(Frozen):
    """Options of ``strategy: tensor``: each matrix is split over some ranks, which see the same rows (Shoeybi et al. 2019,
    arXiv 1909.08053); across these groups the weights are sharded as fsdp does.

    Attributes:
        size: ranks that share one matrix; ``ranks`` is a multiple, and so are the network's heads.
    """

    size: int = Field(2, ge=1, le=64)


class DilocoConfig(Frozen):
    """Options of ``strategy: diloco`` (Douillard et al. 2023, arXiv 2311.08105): each rank trains by itself, and now and then
    what all have learned is averaged and taken as the gradient of an outer step, SGD with Nesterov's momentum.

    Attributes:
        every_steps: steps between two outer ones; there is one before each validation as well.
        learning_rate, momentum: of the outer steps.
    """

    every_steps: int = Field(50, ge=1)
    learning_rate: float = Field(0.7, gt=0, le=10)
    momentum: float = Field(0.9, ge=0, lt=1)


class ParameterServerConfig(Frozen):
    """Options of ``strategy: parameter_server`` (Li et al. 2014, "Scaling Distributed Machine Learning with the Parameter
    Server"): of ``ranks``, the last ones are servers, the others workers.

    Attributes:
        servers: how many. Each holds whole parameters, with their optimizer state, by name.
        mode: ``synchronous``: all workers share each batch, and a step is what one process would do. ``asynchronous``: each
            worker takes the next whole batch, on weights that may be old, and nobody waits for the slowest.
        staleness: asynchronous: the most updates that may come between a worker's reading the weights and its own
            update (the bound of Ho et al. 2013, "More Effective Distributed ML via a Stale Synchronous Parallel
            Parameter Server", counted in updates). 0: one worker at a time.
    """

    servers: int = Field(1, ge=1, le=32)
    mode: Annotated[ServerMode, one_of(ServerMode)] = "synchronous"
    staleness: int = Field(4, ge=0)


class RayConfig(Frozen):
    """Options of ``launcher: ray``.

    Attributes:
        address: ``host:port`` of a cluster that the machine of the flow is a node of (one without CPUs will do);
            ``auto``: the one that was started there.
        cpus, gpus: what the cluster sets aside for each rank. A rank without a GPU trains on the CPU; ``train.device`` may
            insist on the one or the other.
        wait_seconds: how long a training waits until others have left it room.
    """

    address: Annotated[str, AfterValidator(ray_address)] = "auto"
    cpus: int = Field(1, ge=1, le=256)
    gpus: int = Field(0, ge=0, le=1)
    wait_seconds: float = Field(60, ge=0)
