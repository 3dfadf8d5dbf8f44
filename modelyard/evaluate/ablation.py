"""What an answer loses without a column, or without a token: attributions that need no gradient, for models whose trained
network is not at hand. They hold for the form that will be served.

Each is replaced by what it is most of the time, one at a time, and the output for the answer is compared (captum's
`FeatureAblation`; Zeiler & Fergus, Visualizing and Understanding Convolutional Networks, 2014, section 4.2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from modelyard.transform import FittedTransform

if TYPE_CHECKING:
    import torch

    from modelyard.model_package import ModelPackage

TOKENS_AT_A_TIME = 16


def ablated_columns(
    package: ModelPackage, transform: FittedTransform, codes: np.ndarray, answers: np.ndarray
) -> np.ndarray:
    """By raw column (n, c), for the output numbered ``answers`` (n,): numbers are replaced by their mean over the rows,
    categories by the most frequent one."""
    import torch
    from captum.attr import FeatureAblation

    def outputs(rows: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(package.outputs(rows.numpy()))

    usual = [
        _mean(values) if feature.kind in {"number", "date"} else _mode(values)
        for feature, values in zip(transform.features, codes.T, strict=True)
    ]
    found = FeatureAblation(outputs).attribute(
        torch.from_numpy(codes), torch.tensor([usual], dtype=torch.float64), target=torch.from_numpy(answers)
    )
    return found.numpy().astype(np.float64)


def ablated_tokens(package: ModelPackage, inputs: np.ndarray, answers: np.ndarray, pad: int) -> np.ndarray:
    """By token (n, t) of rows of tokens (n, t), below 0 where a row has ended: each is replaced by padding."""
    import torch
    from captum.attr import FeatureAblation

    def outputs(rows: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(package.run(rows.numpy()))

    weights = np.zeros(inputs.shape)
    for number, row in enumerate(inputs):
        tokens = torch.from_numpy(row[None, row >= 0])
        found = FeatureAblation(outputs).attribute(
            tokens, pad, target=int(answers[number]), perturbations_per_eval=TOKENS_AT_A_TIME
        )
        weights[number, row >= 0] = found.numpy()[0]
    return weights


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else 0.0


def _mode(values: np.ndarray) -> float:
    found, counts = np.unique(values, return_counts=True)
    return float(found[counts.argmax()])
