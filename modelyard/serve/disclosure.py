"""How much of what a model says its clients are told: fewer decimals, fewer classes, no raw outputs. Whoever wants to copy a model from its
answers (Tramer et al., USENIX Security 2016) then needs many more of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from modelyard.serve.wire import RAW_OUTPUTS, Tensor
from modelyard.serve.worker_info import WorkerInfo

CLASSES = frozenset({"label", "tag"})  # what a model that tells classes apart answers
UNTOLD = np.finfo(np.float32).min  # a probability of 0, and a number that JSON can carry


@dataclass(frozen=True, kw_only=True)
class Disclosure:
    """What answers may hold.

    Attributes:
        decimals: of every number with a fraction; None: all of them.
        raw_outputs: whether the network's own outputs are told beside the decoded answer.
        top: of a classifier's own outputs, how many classes are told (per row, or token): all others are `UNTOLD`; None: each.
    """

    decimals: int | None = None
    raw_outputs: bool = True
    top: int | None = None

    @property
    def is_full(self) -> bool:
        """Whether clients are told all that a model says."""
        return self.raw_outputs and self.decimals is None and self.top is None

    def info(self, info: WorkerInfo) -> WorkerInfo:
        """What clients see of a version."""
        if self.raw_outputs:
            return info
        return replace(info, outputs=[output for output in info.outputs if output[0] != RAW_OUTPUTS])

    def answers(self, answers: dict[str, Tensor]) -> dict[str, Tensor]:
        """What clients see of its answers."""
        if self.is_full:
            return answers
        told = {name: tensor for name, tensor in answers.items() if self.raw_outputs or name != RAW_OUTPUTS}
        if self.decimals is not None:
            told = {name: _rounded(tensor, self.decimals) for name, tensor in told.items()}
        if self.top is not None and RAW_OUTPUTS in told and not told.keys().isdisjoint(CLASSES):
            told[RAW_OUTPUTS] = _likeliest(told[RAW_OUTPUTS], self.top)
        return told


def _likeliest(tensor: Tensor, top: int) -> Tensor:
    """The largest numbers of each row; of those that are alike the first."""
    if not isinstance(tensor, np.ndarray) or tensor.shape[-1] <= top:
        return tensor
    chosen = np.argsort(-tensor, axis=-1, kind="stable")[..., :top]
    told = np.full_like(tensor, UNTOLD)
    np.put_along_axis(told, chosen, np.take_along_axis(tensor, chosen, axis=-1), axis=-1)
    return told


def _rounded(tensor: Tensor, decimals: int) -> Tensor:
    if isinstance(tensor, np.ndarray) and tensor.dtype.kind == "f":
        return tensor.round(decimals)
    return tensor
