"""What a model that reads texts rests its answers on: attributions to the tokens of single texts.

Integrated gradients (Sundararajan et al., 2017) of the trained network, along the way from a text of padding alone, taken
at the table that turns tokens into vectors (captum's `LayerIntegratedGradients`) and summed over each token's vector. Where
there is no trained network: what the served form's answer loses without each token (`modelyard.evaluate.ablation`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from modelyard.evaluate.ablation import ablated_tokens
from modelyard.metrics import softmax
from modelyard.transform import TextTransform

if TYPE_CHECKING:
    from torch import nn

    from modelyard.evaluate.judge import Judged
    from modelyard.evaluate.parents import Parent

NUM_TEXTS = 8
NUM_STEPS = 32  # of the integral; completeness is measured and reported
STEPS_AT_A_TIME = 16


def explain_texts(one: Judged, parent: Parent, transform: TextTransform, frame: pd.DataFrame) -> dict[str, Any]:
    """Explanations of a few texts, errors first, then some of each class.

    Returns:
        ``rows``: how many were looked at; ``texts``: each with ``truth``, ``answer``, ``confidence`` (of a regression the
        size of the error) and ``parts``: pieces of the text in their order, each with its ``weight`` (above 0: speaks for
        the answer) and that as a ``share`` of the text's largest; ``method`` and ``completeness`` as `explain` has them.
    """
    rows, targets = transform.rows(frame), one.targets(frame)
    outputs = one.package.outputs(rows)
    answers = outputs.argmax(axis=1) if one.is_classifier else np.zeros(len(rows), np.int64)
    chosen = _told_first(one, outputs, targets)[:NUM_TEXTS]
    inputs = transform.apply(rows[chosen])
    completeness = None
    if parent.network is not None:
        weights, gaps = _attributions(parent.network, inputs, answers[chosen], transform.pad)
        size = max(float(np.abs(weights.sum(axis=1)).mean()), 1e-12)
        completeness = {"largest": float(gaps.max()) / size, "mean": float(gaps.mean()) / size}
    else:
        weights = ablated_tokens(one.package, inputs, answers[chosen], transform.pad)
    texts = [str(text) for text in frame[transform.column].iloc[chosen]]
    told = [
        {**_answered(one, outputs[at], targets[at]), "parts": _parts(transform, text, weights[place])}
        for place, (at, text) in enumerate(zip(chosen, texts, strict=True))
    ]
    method = "integrated gradients" if completeness else "ablation"
    found = {"rows": len(chosen), "columns": transform.columns, "texts": told}
    return {**found, "method": method, "completeness": completeness}


def _told_first(one: Judged, outputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Rows (n,) in the order in which they are worth being told: errors, the surest first; then of every class in turn the
    answers it was surest of."""
    if not one.is_classifier:
        return np.argsort(-np.abs(outputs.astype(np.float64).reshape(-1) - targets), kind="stable")
    answers = outputs.argmax(axis=1)
    sure = np.nan_to_num(softmax(outputs.astype(np.float64)).max(axis=1))
    place = np.zeros(len(answers), np.int64)  # within its class; errors stand before all
    for number in np.unique(answers):
        of_class = np.flatnonzero((answers == number) & (answers == targets))
        place[of_class[np.argsort(-sure[of_class], kind="stable")]] = 1 + np.arange(len(of_class))
    return np.lexsort((-sure, place))


def _attributions(
    network: nn.Module, inputs: np.ndarray, answers: np.ndarray, pad: int
) -> tuple[np.ndarray, np.ndarray]:
    """By token (n, t) for the output numbered ``answers`` (n,), and how far each text's are from complete (n,)."""
    import torch
    from captum.attr import LayerIntegratedGradients

    table = network.get_submodule("network").get_input_embeddings()  # ty: ignore[not-callable]
    explained = LayerIntegratedGradients(network, table)
    weights, gaps = np.zeros(inputs.shape), np.zeros(len(inputs))
    for number, row in enumerate(inputs):
        tokens = torch.from_numpy(row[None, row >= 0])
        found, gap = explained.attribute(
            tokens,
            torch.full_like(tokens, pad),
            target=int(answers[number]),
            n_steps=NUM_STEPS,
            internal_batch_size=STEPS_AT_A_TIME,
            return_convergence_delta=True,
        )
        weights[number, row >= 0] = found.sum(dim=-1).detach().numpy()[0]
        gaps[number] = abs(float(gap))
    return weights, gaps


def _parts(transform: TextTransform, text: str, weights: np.ndarray) -> list[dict[str, Any]]:
    """The text in pieces, each up to the end of a token; marks of beginning and end have none."""
    (encoding,) = transform.encodings([text])
    most = float(np.abs(weights).max()) or 1.0
    parts, begin = [], 0
    for (_, end), weight in zip(encoding.offsets, weights, strict=False):
        if end > begin:
            parts.append({"text": text[begin:end], "weight": float(weight), "share": abs(float(weight)) / most})
            begin = end
    if begin < len(text):
        parts.append({"text": text[begin:], "weight": 0.0, "share": 0.0})
    return parts


def _answered(one: Judged, output: np.ndarray, target: Any) -> dict[str, Any]:
    schema = one.package.spec.target
    if one.is_classifier:
        sure = float(np.nan_to_num(softmax(output.astype(np.float64)).max()))
        return {"truth": schema.classes[target], "answer": schema.classes[int(output.argmax())], "confidence": sure}
    value, truth = (float(number) * schema.scale + schema.mean for number in (output.reshape(-1)[0], target))
    return {"truth": truth, "answer": value, "confidence": abs(value - truth)}
