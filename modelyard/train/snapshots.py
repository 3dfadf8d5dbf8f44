"""The tensors of a checkpoint: taken from a running training, written by every rank, put back on any number of ranks.

Weights, optimizer state and averages go through torch's distributed checkpoint into safetensors, each rank writing its
shards. What belongs to one rank alone (its random generators, its part of the loss being summed) is a file beside them.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from torch import distributed, nn
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from modelyard.train.first_weights import plain_name
from modelyard.train.stepper import Stepper

SHARDS, LOCAL = "shards", "local"
MODEL, OPTIMIZER, AVERAGE, HIDDEN = "model.", "optimizer.", "average.", "hidden."
FLAT = StateDictOptions(flatten_optimizer_state_dict=True)
TRAINED = StateDictOptions(ignore_frozen_params=True, strict=False)
Tensors = dict[str, torch.Tensor]


def model_tensors(network: nn.Module) -> Tensors:
    """Views on weights and buffers, under the names of the plain network; without weights that are not trained."""
    return cast("Tensors", get_model_state_dict(network, options=TRAINED))


def optimizer_tensors(network: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, Any]:
    """What this rank's optimizers keep, by weight; some ranks have none."""
    return get_optimizer_state_dict(network, list(optimizers), options=FLAT) if optimizers else {}


def shared_tensors(stepper: Stepper) -> Tensors:
    """Views on everything that ranks share: whole tensors under ddp, shards under fsdp, the state of its own weights on a
    parameter server; names are those of the plain network."""
    model = model_tensors(stepper.network)
    state = optimizer_tensors(stepper.network, stepper.optimizers)
    found = {MODEL + name: value for name, value in model.items()}
    found |= {OPTIMIZER + name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    if stepper.average:
        found |= {AVERAGE + plain_name(name): value for name, value in stepper.average.weights.items()}
    if stepper.hidden:
        found |= {HIDDEN + name: value for name, value in stepper.hidden.projections.state_dict().items()}
        state = optimizer_tensors(stepper.hidden.projections, stepper.hidden.optimizers)
        found |= {HIDDEN + OPTIMIZER + name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    return found


def staged(tensors: Mapping[str, torch.Tensor], room: Mapping[str, torch.Tensor] | None = None) -> Tensors:
    """Copies on the CPU, which training does not touch any more.

    Args:
        room: copies that nobody needs any more, to be written over: memory that is new costs more than the copying.
    """
    return {name: _copied(value.detach(), (room or {}).get(name)) for name, value in tensors.items()}


def _copied(value: torch.Tensor, room: torch.Tensor | None) -> torch.Tensor:
    if room is None or (room.shape, room.dtype) != (value.shape, value.dtype):
        return value.to("cpu", copy=True)
    _held(room).copy_(_held(value))
    return room


def num_bytes(tensors: Mapping[str, torch.Tensor]) -> int:
    """Of what this rank holds of some tensors."""
    return sum(_held(value).nbytes for value in tensors.values())


def all_finite(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether what this rank holds of some tensors has neither NaN nor infinity: one pass, and no mask is made."""
    numbers = [held for value in tensors if value.is_floating_point() and (held := _held(value)).numel()]
    return all(bool(end.isfinite()) for held in numbers for end in torch.aminmax(held))


def _held(value: torch.Tensor) -> torch.Tensor:
    """This rank's part of a tensor that ranks may share."""
    part = getattr(value, "to_local", None)
    return part() if part else value


def write(tensors: Tensors, local: Tensors, folder: Path, group: Any) -> None:
    """Write this rank's part below ``folder``; every rank of ``group`` has to call it."""
    writer = HuggingFaceStorageWriter(str(folder / SHARDS), save_distributed=True)
    dcp.save(_with_dimensions(tensors), storage_writer=writer, process_group=group)
    (folder / LOCAL).mkdir(parents=True)
    save_file(local, folder / LOCAL / f"rank-{distributed.get_rank():05d}.safetensors")


def restore_(stepper: Stepper, folder: Path) -> None:
    """Put a fetched checkpoint's tensors in place, each rank reading what it holds."""
    network, average = stepper.network, stepper.average
    wanted = shared_tensors(stepper)
    fresh = {name: torch.empty_like(value) for name, value in wanted.items()}
    dcp.load(_with_dimensions(fresh), storage_reader=HuggingFaceStorageReader(str(folder / SHARDS)))
    set_model_state_dict(network, {name: fresh[MODEL + name] for name in model_tensors(network)}, options=TRAINED)
    found = {name.removeprefix(OPTIMIZER): value for name, value in fresh.items() if name.startswith(OPTIMIZER)}
    load_optimizers_(network, stepper.optimizers, found)
    if average:
        for name, value in average.weights.items():
            value.copy_(fresh[AVERAGE + plain_name(name)])
    if stepper.hidden:
        held = {name.removeprefix(HIDDEN): value for name, value in fresh.items() if name.startswith(HIDDEN)}
        state = {name.removeprefix(OPTIMIZER): held.pop(name) for name in list(held) if name.startswith(OPTIMIZER)}
        stepper.hidden.projections.load_state_dict(held)
        load_optimizers_(stepper.hidden.projections, stepper.hidden.optimizers, state)
    stepper.restore_own_(local_files(folder))


def load_optimizers_(network: nn.Module, optimizers: Sequence[Optimizer], found: Mapping[str, torch.Tensor]) -> None:
    """Give optimizers the state that `optimizer_tensors` told. Rates and the like stay: the config and the schedule say
    them."""
    if optimizers:
        state = optimizer_tensors(network, optimizers)
        loaded: dict[str, Any] = {name: found.get(name, value) for name, value in state.items()}
        set_optimizer_state_dict(network, list(optimizers), loaded, options=FLAT)


def local_files(folder: Path) -> list[Path]:
    """What each rank saved of its own, in the order of ranks."""
    return sorted((folder / LOCAL).glob("rank-*.safetensors"))


class PublishedWeights:
    """Full weights of a fetched checkpoint, some at a time put together from the shards in one process; the moving average's
    where one was kept (a `modelyard.models.weights.Source`).

    Args:
        shapes: of the network's weights.
    """

    def __init__(self, folder: Path, shapes: Mapping[str, Sequence[int]]) -> None:
        self._shards, self._shapes = folder / SHARDS, shapes
        metadata = HuggingFaceStorageReader(str(self._shards)).read_metadata().state_dict_metadata
        stored = {name: kind for name, kind in metadata.items() if isinstance(kind, TensorStorageMetadata)}
        self._names = {  # name in the network -> in the checkpoint; an average comes last and takes the weight's place
            name.removeprefix(sort): name for sort in (MODEL, AVERAGE) for name in stored if name.startswith(sort)
        }
        self._empty = {
            name: torch.empty(stored[there].size, dtype=stored[there].properties.dtype, device="meta")
            for name, there in self._names.items()
        }

    @property
    def described(self) -> Tensors:
        """Name -> shape and type, on torch's meta device."""
        return {name: value.reshape(list(self._shapes[name])) for name, value in self._empty.items()}

    def read(self, names: Iterable[str]) -> Tensors:
        """Some of them."""
        empty = {name: torch.empty_like(self._empty[name], device="cpu") for name in names}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # on purpose: there is no group here
            dcp.load(
                {self._names[name]: value for name, value in empty.items()},
                storage_reader=HuggingFaceStorageReader(str(self._shards)),
                no_dist=True,
            )
        return {name: value.reshape(list(self._shapes[name])) for name, value in empty.items()}


def shapes(network: nn.Module) -> dict[str, list[int]]:
    """Name -> shape of everything that makes the network: two networks that differ here share no checkpoint."""
    return {name: list(value.shape) for name, value in model_tensors(network).items()}


class Origin:
    """The state before the first step, kept until there is a checkpoint to go back to."""

    def __init__(self, weights: Tensors, local: Tensors) -> None:
        self._weights, self._local = weights, local

    @classmethod
    def of(cls, stepper: Stepper, loss_sum: torch.Tensor) -> Origin:
        return cls(staged(model_tensors(stepper.network)), local_tensors(stepper.device, loss_sum))

    def restore_(self, stepper: Stepper, loss_sum: torch.Tensor) -> None:
        """Put a stepper back to where it began."""
        with torch.no_grad():
            for name, value in model_tensors(stepper.network).items():
                value.copy_(self._weights[name])
        stepper.forget_state()
        _restore_generators(self._local, stepper.device)
        loss_sum.zero_()


# -- what is one rank's own ---------------------------------------------------------------------------


def local_tensors(device: torch.device, loss_sum: torch.Tensor) -> Tensors:
    """This rank's random generators (torch, its device's, NumPy, Python) and its part of the loss."""
    _, keys, position, has_gauss, cached = cast("tuple[Any, ...]", np.random.get_state())  # noqa: NPY002 - users' code draws from it
    version, words, gauss = random.getstate()
    found = {
        "loss_sum": loss_sum.detach().cpu().reshape(1).clone(),
        "torch": torch.get_rng_state(),
        "numpy": torch.from_numpy(np.concatenate([keys.astype(np.int64), [position, has_gauss]])),
        "numpy_cached": torch.tensor([cached], dtype=torch.float64),
        "python": torch.tensor([version, *words], dtype=torch.int64),
        "python_gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
    }
    if device.type != "cpu":
        found["device"] = torch.get_device_module(device).get_rng_state()
    return found


def restore_local_(folder: Path, device: torch.device, streams: int) -> torch.Tensor:
    """Put this rank's generators back where the rank numbered ``streams`` had any; returns this rank's part of the loss.

    With another number of ranks than before, rank 0 takes the whole sum and ranks that are new keep their fresh seeds.
    """
    rank, files = distributed.get_rank(), local_files(folder)
    sums = torch.cat([load_file(path)["loss_sum"] for path in files])
    if streams < len(files):
        _restore_generators(load_file(files[streams]), device)
    if len(files) == distributed.get_world_size():
        return sums[rank]
    return sums.sum() if rank == 0 else torch.zeros((), dtype=sums.dtype)


def _restore_generators(found: Tensors, device: torch.device) -> None:
    numpy_words = found["numpy"].numpy()
    words = found["python"].tolist()
    torch.set_rng_state(found["torch"])
    np.random.set_state(  # noqa: NPY002
        ("MT19937", numpy_words[:-2].astype(np.uint32), int(numpy_words[-2]), int(numpy_words[-1]),
         found["numpy_cached"].item())
    )  # fmt: skip
    random.setstate((words[0], tuple(words[1:]), *(found["python_gauss"].tolist() or [None])))
    if "device" in found and device.type != "cpu":
        torch.get_device_module(device).set_rng_state(found["device"])


def _with_dimensions(tensors: Tensors) -> Tensors:
    """Numbers as vectors of one: the reader slices, and a slice needs a dimension."""
    return {name: value.view(1) if value.ndim == 0 else value for name, value in tensors.items()}
