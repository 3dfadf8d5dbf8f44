"""How much of what a model says its clients are told: fewer decimals, no raw outputs. Whoever wants to copy a model from its
answers (Tramer et al., USENIX Security 2016) then needs many more of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from modelyard.serve.wire import RAW_OUTPUTS, Tensor
from modelyard.serve.workers import WorkerInfo


@dataclass(frozen=True, kw_only=True)
class Disclosure:
    """What answers may hold.

    Attributes:
        decimals: of every number with a fraction; None: all of them.
        raw_outputs: whether the network's own outputs are told beside the decoded answer.
    """

    decimals: int | None = None
    raw_outputs: bool = True

    def info(self, info: WorkerInfo) -> WorkerInfo:
        """What clients see of a version."""
        if self.raw_outputs:
            return info
        return replace(info, outputs=[output for output in info.outputs if output[0] != RAW_OUTPUTS])

    def answers(self, answers: dict[str, Tensor]) -> dict[str, Tensor]:
        """What clients see of its answers."""
        if self.raw_outputs and self.decimals is None:
            return answers
        told = {name: tensor for name, tensor in answers.items() if self.raw_outputs or name != RAW_OUTPUTS}
        return (
            told if self.decimals is None else {name: _rounded(tensor, self.decimals) for name, tensor in told.items()}
        )


def _rounded(tensor: Tensor, decimals: int) -> Tensor:
    if isinstance(tensor, np.ndarray) and tensor.dtype.kind == "f":
        return tensor.round(decimals)
    return tensor
