"""How the matrices of a network are split over ranks (Shoeybi et al. 2019, arXiv 1909.08053), a plan for each kind that
has one. Networks know nothing of it.

In every pair of matrices the first is split by its outputs and the second by its inputs, so that one sum over ranks is
needed behind the pair. Attention is split by whole heads. The vocabulary is split too: of a tied embedding both uses.
Norms stay whole: every rank of a group computes the same.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, distribute_module
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

from modelyard.errors import ConfigError
from modelyard.models.config import GptConfig, ModelConfig
from modelyard.models.gpt import Gpt

# Training does nothing in place to outputs, and a copy of all scores would cost what the warning warns of.
warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")


def require_plan(network: ModelConfig, size: int) -> None:
    """Refuse a network that cannot be split over ``size`` ranks.

    Raises:
        ConfigError: it has no plan (the sentence says what has), or its heads cannot be shared evenly.
    """
    if not isinstance(network, GptConfig):
        raise ConfigError(
            "train.strategy", f"tensor has no plan for a network of kind {network.kind!r}; gpt has one; take fsdp"
        )
    counts = {"heads": network.heads, "key_value_heads": network.num_key_value_heads, "hidden": network.num_hidden}
    for name, count in counts.items():
        if count % size:
            raise ConfigError("train.tensor.size", f"{size} ranks cannot share the network's {count} {name} evenly")


def split_(network: nn.Module, mesh: DeviceMesh) -> None:
    """Split a network in place over the ranks of a mesh of one dimension.

    Raises:
        ConfigError: there is no plan for it.
    """
    if not isinstance(network, Gpt):
        raise ConfigError(
            "train.strategy", f"tensor has no plan for a {type(network).__name__}; gpt has one; take fsdp"
        )
    parallelize_module(network, mesh, _gpt_plan(tied=network.lm_head is None))
    network.register_forward_hook(_whole_scores)


def _gpt_plan(*, tied: bool) -> dict[str, ParallelStyle]:
    block = "model.layers.*."
    by_outputs = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"]
    plan: dict[str, ParallelStyle] = {
        "model.embed_tokens": RowwiseParallel(input_layouts=Replicate()),
        **{block + name: ColwiseParallel() for name in by_outputs},
        **{block + name: RowwiseParallel() for name in ("self_attn.o_proj", "mlp.down_proj")},
        **{block + name: Whole() for name in ("input_layernorm", "post_attention_layernorm")},
        # What the embedding's matrix is applied to must know the mesh, as that does.
        "model.norm": Whole(stays_on_mesh=True),
    }
    return plan if tied else plan | {"lm_head": ColwiseParallel(use_local_output=False)}


class Whole(ParallelStyle):
    """Weights that every rank of the mesh has, on rows that every rank sees.

    Args:
        stays_on_mesh: the output is a `DTensor`.
    """

    def __init__(self, *, stays_on_mesh: bool = False) -> None:
        super().__init__()
        self._stays_on_mesh = stays_on_mesh

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        enter: Any = self._enter  # it may return the inputs anew, whatever the type says
        return distribute_module(module, device_mesh, None, enter, self._leave)

    def _enter(self, module: nn.Module, inputs: Any, mesh: DeviceMesh) -> tuple[Any, ...]:
        del module
        return tuple(DTensor.from_local(one, mesh, [Replicate()], run_check=False) for one in inputs)

    def _leave(self, module: nn.Module, outputs: Any, mesh: DeviceMesh) -> Any:
        del module, mesh
        return outputs if self._stays_on_mesh else outputs.to_local()


def _whole_scores(module: nn.Module, inputs: Any, outputs: torch.Tensor) -> torch.Tensor:
    """Scores of the whole vocabulary on every rank, for the loss."""
    del module, inputs
    return outputs.redistribute(placements=[Replicate()]).to_local() if isinstance(outputs, DTensor) else outputs
