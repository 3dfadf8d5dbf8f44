"""What answers rest on: which columns matter to the form that will be served, and what moved the trained network.

Importance is what a score loses when a column is exchanged among the rows (Breiman, Random Forests, 2001; Fisher et
al., 2019): it needs no gradient and holds for the served form. Attributions are integrated gradients (Sundararajan et
al., 2017) of the trained network from the mean row, summed over the inputs that a raw column became; where there is no
trained network, what the served form's answer loses without each column (`modelyard.evaluate.ablation`).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from modelyard.evaluate.ablation import ablated_columns
from modelyard.evaluate.config import EvaluateConfig
from modelyard.evaluate.explain_texts import explain_texts
from modelyard.evaluate.judge import Judged
from modelyard.evaluate.parents import Parent
from modelyard.metrics import softmax
from modelyard.transform import FittedTransform, TextTransform

if TYPE_CHECKING:
    from torch import nn

MAX_EXCHANGED_COLUMNS = 1024  # each costs a pass over the rows
MANY_COLUMNS = 100  # beyond this, one exchange of each has to do
NUM_EXCHANGES = 3
NUM_STEPS = 64  # of the integral; completeness is measured and reported
ROWS_AT_A_TIME = 4096
NUM_WORST = 6
MIN_GRID = 16


def explain(one: Judged, parent: Parent, frame: pd.DataFrame, config: EvaluateConfig) -> dict[str, Any] | None:
    """Explanations over some rows; None where there is no row. Of a model that reads texts: `explain_texts`.

    Returns:
        ``columns``: raw columns, c of them; ``grid``: height and width where they are the pixels of an image, else
        None; ``rows``: how many were looked at; ``importance``: loss of score by column (c), or None for too many
        columns; ``attribution``: None for too many columns and no trained network, else ``method`` (``integrated gradients``
        or ``ablation``), ``global`` (mean size by column, c),
        ``by_class`` (label -> mean by column over the rows answered so, c) and ``completeness`` (largest and mean
        distance between what attributions add up to and the difference of outputs, as a fraction of the mean size of
        that difference; None of ablation, which promises nothing of the kind); ``worst``: the errors made with most confidence, each with ``truth``, ``answer``,
        ``confidence`` (for a regression the size of the error), ``values`` and ``attribution`` (c).
    """
    if frame.empty:
        return None
    transform = one.package.transform
    if isinstance(transform, TextTransform):
        return explain_texts(one, parent, transform, frame)
    codes, targets = transform.rows(frame), one.targets(frame)
    outputs = one.package.outputs(codes)
    found: dict[str, Any] = {
        "columns": transform.columns,
        "grid": _grid(transform),
        "rows": len(frame),
        "importance": _importance(one, codes, targets, config),
        "attribution": None,
    }
    attributions, completeness, method = None, None, "ablation"
    answers = outputs.argmax(axis=1) if one.is_classifier else np.zeros(len(frame), np.int64)
    if parent.network is not None:
        attributions, completeness = _attributions(parent.network, transform, codes, answers)
        method = "integrated gradients"
    elif codes.shape[1] <= MAX_EXCHANGED_COLUMNS:
        attributions = ablated_columns(one.package, transform, codes, answers)
    if attributions is not None:
        found["attribution"] = {
            "method": method,
            "global": np.abs(attributions).mean(axis=0).tolist(),
            "by_class": _by_class(one, attributions, answers),
            "completeness": completeness,
        }
    found["worst"] = _worst(one, codes, outputs, targets, attributions)
    return found


def _importance(one: Judged, codes: np.ndarray, targets: np.ndarray, config: EvaluateConfig) -> list[float] | None:
    """What the score loses when each column is exchanged among the rows, mean of a few exchanges."""
    num_columns = codes.shape[1]
    if num_columns > MAX_EXCHANGED_COLUMNS:
        return None
    rng, calm = np.random.default_rng(config.seed), _score(one, codes, targets, config.metric)
    repeats = NUM_EXCHANGES if num_columns <= MANY_COLUMNS else 1
    losses = []
    for column in range(num_columns):
        exchanged, scores = codes.copy(), []
        for _ in range(repeats):
            exchanged[:, column] = rng.permutation(codes[:, column])
            scores.append(_score(one, exchanged, targets, config.metric))
        losses.append(float(calm - np.mean(scores)))
    return losses


def _score(one: Judged, codes: np.ndarray, targets: np.ndarray, metric: str) -> float:
    return one.score_of(one.package.transform.apply(codes), targets, metric)


def _attributions(
    network: nn.Module, transform: FittedTransform, codes: np.ndarray, answers: np.ndarray
) -> tuple[np.ndarray, dict[str, float]]:
    """Integrated gradients by raw column (n, c) for the output numbered ``answers`` (n,), and how complete they are."""
    import torch
    from captum.attr import IntegratedGradients

    encoded = transform.encode(codes).astype(np.float32)
    inputs, baseline = torch.from_numpy(encoded), torch.from_numpy(encoded.mean(axis=0, keepdims=True))
    whole = _from_encoded(network, transform)
    by_input, gaps = IntegratedGradients(whole).attribute(
        inputs,
        baseline,
        target=torch.tensor(answers),
        n_steps=NUM_STEPS,
        internal_batch_size=ROWS_AT_A_TIME,
        return_convergence_delta=True,
    )
    by_column = np.zeros((len(codes), codes.shape[1]))
    np.add.at(by_column.T, transform.origins, by_input.detach().numpy().T.astype(np.float64))
    size = max(float(np.abs(by_column.sum(axis=1)).mean()), 1e-12)
    gap = np.abs(gaps.detach().numpy())
    return by_column, {"largest": float(gap.max()) / size, "mean": float(gap.mean()) / size}


def _from_encoded(network: nn.Module, transform: FittedTransform) -> nn.Module:
    """The network with the transform's projection, if there is one, in front."""
    import torch
    from torch import nn

    if transform.components is None:
        return network
    mean, components = (torch.from_numpy(np.asarray(part, dtype=np.float32)) for part in transform.components)
    project = nn.Linear(components.shape[1], components.shape[0])
    with torch.no_grad():
        project.weight.copy_(components)
        project.bias.copy_(-components @ mean)
    return nn.Sequential(project, network)


def _by_class(one: Judged, attributions: np.ndarray, answers: np.ndarray) -> dict[str, list[float]]:
    """Mean attribution by column over the rows that got each answer; a regression has none."""
    classes = one.package.spec.target.classes
    return {
        str(label): attributions[answers == number].mean(axis=0).tolist()
        for number, label in enumerate(classes)
        if (answers == number).any()
    }


def _worst(
    one: Judged, codes: np.ndarray, outputs: np.ndarray, targets: np.ndarray, attributions: np.ndarray | None
) -> list[dict[str, Any]]:
    """The rows that were wrong with most confidence, or by most."""
    classes, chosen = one.package.spec.target.classes, []
    if one.is_classifier:
        confidence, answers = softmax(outputs.astype(np.float64)).max(axis=1), outputs.argmax(axis=1)
        wrong = np.where(answers != targets, np.nan_to_num(confidence), -1.0)
    else:
        wrong = np.nan_to_num(np.abs(outputs.astype(np.float64).reshape(-1) - targets))
        answers, confidence = np.zeros(len(codes), np.int64), wrong
    for row in np.argsort(-wrong, kind="stable")[:NUM_WORST]:
        if wrong[row] <= 0:
            break
        chosen.append({
            "truth": classes[targets[row]] if classes else _plain(one, float(targets[row])),
            "answer": classes[answers[row]] if classes else _plain(one, float(outputs[row].reshape(-1)[0])),
            "confidence": float(confidence[row]),
            "values": codes[row].tolist(),
            "attribution": None if attributions is None else attributions[row].tolist(),
        })  # fmt: skip
    return chosen


def _plain(one: Judged, value: float) -> float:
    """A regression's number in the target's own units."""
    target = one.package.spec.target
    return value * target.scale + target.mean


def _grid(transform: FittedTransform) -> list[int] | None:
    """Height and width, where columns are numbered numbers of one name (``pixel_0_0``, ...) that make a square."""
    names, side = transform.columns, int(len(transform.columns) ** 0.5)
    prefixes = {re.sub(r"\d+([_x]\d+)?$", "", name) for name in names}
    is_image = len(names) >= MIN_GRID and side * side == len(names) and len(prefixes) == 1 and not set(names) & prefixes
    return [side, side] if is_image and all(feature.kind == "number" for feature in transform.features) else None
