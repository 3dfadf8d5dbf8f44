"""How a network is spread over ranks: one function, one word of config. Model files know nothing of this.

Order: splitting of matrices, activation checkpointing, compilation, sharding. Matrices are split first, by the names that
the plain network has. Checkpointing goes inside so that what is compiled contains the recomputation; sharding goes outside
so that gathers happen around whole compiled layers.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import distributed, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from modelyard.train.config import TrainConfig
from modelyard.train.first_weights import is_on_meta
from modelyard.train.precision import DTYPES
from modelyard.train.tensor_plans import split_


def parallelize(
    network: nn.Module,
    config: TrainConfig,
    device: torch.device,
    trial: Callable[[nn.Module], None],
    note: Callable[[str], None],
) -> nn.Module:
    """The module that training calls: the same network, spread as ``config.strategy`` says.

    Args:
        network: on ``device``, with the same weights on every rank; those that shard do so in place. One on the meta device,
            for a strategy that shards, gets memory for this rank's part alone, and no values (`first_weights.py`).
        trial: one forward and backward pass of a module that takes what ``network`` takes.
        note: is told what was given up.
    """
    mesh = device_mesh(config, device)
    if config.strategy == "tensor":
        assert mesh is not None
        split_(network, mesh["tensor"])
    if config.fsdp.checkpoint_activations:
        _checkpoint_activations_(network)
    if config.compile:
        _compile_(layers_of(network) if mesh else [network], partial(trial, network), note)
        network.zero_grad(set_to_none=True)
    if mesh:
        _shard_(network, config, mesh["data"] if config.strategy == "tensor" else mesh)
        return network.to_empty(device=device) if is_on_meta(network) else network
    # Alone there is nobody to average with, and DDP's buckets would cost a tenth of a small network's step.
    averages = config.strategy == "ddp" and distributed.get_world_size() > 1
    return _with_settled_buckets(DistributedDataParallel(network), trial) if averages else network


def _with_settled_buckets(parallel: DistributedDataParallel, trial: Callable[[nn.Module], None]) -> nn.Module:
    """DDP sorts gradients into other buckets after the first pass of its life, and with more than two ranks the order of a
    sum depends on the place in a bucket. That pass is made here and leaves nothing behind, so that the first step after a
    resume has the bits it has in the midst of a training."""
    generators = torch.get_rng_state()
    buffers = [(buffer, buffer.clone()) for buffer in parallel.module.buffers()]
    trial(parallel)
    parallel.zero_grad(set_to_none=True)
    with torch.no_grad():
        for buffer, before in buffers:
            buffer.copy_(before)
    torch.set_rng_state(generators)
    return parallel


@contextmanager
def gradient_sync(parallel: nn.Module, *, wanted: bool) -> Generator[None]:
    """Average gradients over ranks in this backward pass, or leave that to a later one."""
    if isinstance(parallel, DistributedDataParallel) and not wanted:
        with parallel.no_sync():
            yield
        return
    if isinstance(parallel, FSDPModule):
        parallel.set_requires_gradient_sync(wanted)
    yield


def layers_of(network: nn.Module) -> list[nn.Module]:
    """The repeated parts of a network: children with weights of its first list of modules, else of itself."""
    lists = [module for module in network.modules() if isinstance(module, nn.ModuleList | nn.Sequential)]
    parent = lists[0] if lists else network
    return [child for child in parent.children() if any(True for _ in child.parameters())]


def device_mesh(config: TrainConfig, device: torch.device) -> DeviceMesh | None:
    """How ranks are laid out for a strategy that shards; None for others. Neighbours form the inner groups, for they
    exchange the most."""
    num_ranks = distributed.get_world_size()
    match config.strategy:
        case "fsdp":
            return init_device_mesh(device.type, (num_ranks,))
        case "hsdp":
            shape = (num_ranks // config.hsdp.shards, config.hsdp.shards)
            return init_device_mesh(device.type, shape, mesh_dim_names=("copies", "shards"))
        case "tensor":
            shape = (num_ranks // config.tensor.size, config.tensor.size)
            return init_device_mesh(device.type, shape, mesh_dim_names=("data", "tensor"))
    return None


def _shard_(network: nn.Module, config: TrainConfig, mesh: DeviceMesh) -> None:
    dtype = None if config.precision == "fp32" else DTYPES[config.precision]
    reduce = torch.float32 if config.fsdp.reduce_in_fp32 else dtype
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=reduce)
    for layer in layers_of(network):
        fully_shard(layer, mesh=mesh, mp_policy=policy, reshard_after_forward=config.fsdp.reshard)
    fully_shard(network, mesh=mesh, mp_policy=policy, reshard_after_forward=config.fsdp.reshard)


def _compile_(modules: Sequence[nn.Module], trial: Callable[[], None], note: Callable[[str], None]) -> None:
    """Compile modules in place; where that fails on any rank, all of them go on without it."""
    generators = torch.get_rng_state()
    for module in modules:
        module.compile()
    failure = ""
    try:
        trial()
    except Exception as error:  # noqa: BLE001 - compilers fail in many ways, and none should stop a training
        failure = (str(error).strip().splitlines() or [type(error).__name__])[0]
    torch.set_rng_state(generators)  # dropout of the trial must not move the streams
    failures: list[str] = [""] * distributed.get_world_size()
    distributed.all_gather_object(failures, failure)
    if not any(failures):
        return
    for module in modules:
        module._compiled_call_impl = None  # noqa: SLF001 - torch has no public way back from Module.compile
    note(f"torch.compile was given up: {next(filter(None, failures))}")


def _checkpoint_activations_(network: nn.Module) -> None:
    layers = {id(layer) for layer in layers_of(network)}
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if id(child) in layers:
                setattr(parent, name, checkpoint_wrapper(child))
