"""What disorder and opponents do to the score.

Disturbances are noise, gaps and shuffled columns in the network's input; they need no gradients, so every form that
can be served is judged as it will be served. Attacks (`modelyard.evaluate.attacks`) look for the rows that hurt in the
trained network, and the form that will be served answers them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

from modelyard.evaluate.attacks import Reach, fgsm, pgd, random_signs
from modelyard.evaluate.config import EvaluateConfig
from modelyard.evaluate.judge import Judged
from modelyard.evaluate.parents import Parent
from modelyard.evaluate.text_disturbances import TEXT_DISTURBANCES
from modelyard.transform import FittedTransform, TextTransform

NOISE_DEVIATIONS = 0.1  # of each column's own standard deviation
DISTURBED_FRACTION = 0.1  # of the values that go missing, of the columns that are shuffled

UNDISTURBED = "undisturbed"

# Kind of trouble -> role -> score, `UNDISTURBED` among the kinds.
Scores = dict[str, dict[str, float]]
Disturbance = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def noise(inputs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise on every value of (n, width)."""
    scale = NOISE_DEVIATIONS * inputs.std(axis=0)
    return (inputs + rng.normal(size=inputs.shape) * scale).astype(inputs.dtype)


def missing(inputs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Some values of (n, width) replaced by the mean of their column, as a client that fills gaps does."""
    gaps = rng.random(inputs.shape) < DISTURBED_FRACTION
    return np.where(gaps, inputs.mean(axis=0), inputs).astype(inputs.dtype)


def shuffled(inputs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Some columns of (n, width), at least one, exchanged among the rows: the model must not hang on one alone."""
    width = inputs.shape[1]
    chosen = rng.choice(width, size=max(1, round(DISTURBED_FRACTION * width)), replace=False)
    disturbed = inputs.copy()
    for column in chosen:
        disturbed[:, column] = rng.permutation(inputs[:, column])
    return disturbed


DISTURBANCES: Mapping[str, Disturbance] = {"noise": noise, "missing": missing, "shuffled": shuffled}


def disturb(judged: Mapping[str, Judged], first: pd.DataFrame, config: EvaluateConfig) -> Scores:
    """The score of every model over some rows, as they are and disturbed, the same way for each model."""
    if first.empty:
        return {}
    if any(isinstance(one.package.transform, TextTransform) for one in judged.values()):
        return _disturb_texts(judged, first, config)
    found: Scores = {UNDISTURBED: {}, **{name: {} for name in DISTURBANCES}}
    for role, one in judged.items():
        inputs, targets = one.package.transform.apply_frame(first), one.targets(first)
        found[UNDISTURBED][role] = one.score_of(inputs, targets, config.metric)
        for number, (name, change) in enumerate(DISTURBANCES.items()):
            rng = np.random.default_rng([config.seed, number])
            found[name][role] = one.score_of(change(inputs, rng), targets, config.metric)
    return found


def _disturb_texts(judged: Mapping[str, Judged], first: pd.DataFrame, config: EvaluateConfig) -> Scores:
    """The same for models of texts: what is disturbed is the text itself, before any tokenizer sees it."""
    found: Scores = {UNDISTURBED: {}, **{name: {} for name in TEXT_DISTURBANCES}}
    for role, one in judged.items():
        (column,) = one.package.transform.columns
        targets = one.targets(first)
        found[UNDISTURBED][role] = one.score_of(one.package.transform.apply_frame(first), targets, config.metric)
        for number, (name, change) in enumerate(TEXT_DISTURBANCES.items()):
            texts = change(list(first[column]), np.random.default_rng([config.seed, number]))
            inputs = one.package.transform.apply_columns({column: texts})
            found[name][role] = one.score_of(inputs, targets, config.metric)
    return found


def attack(
    judged: Mapping[str, Judged], parents: Mapping[str, Parent], first: pd.DataFrame, config: EvaluateConfig
) -> Scores:
    """The score of every model over rows that were changed to hurt it, each by way of its own trained network. None of
    models that read texts: a token's number cannot change by a little.

    Args:
        parents: role -> the network behind that model. One that has none is attacked by tries alone.
    """
    found: Scores = {}
    if first.empty or not config.attack_strength:
        return found
    for role, one in judged.items():
        transform = one.package.transform
        if isinstance(transform, TextTransform):
            return {}
        inputs, targets = transform.apply_frame(first), one.targets(first)
        reach = Reach.of(inputs, movable(transform), config.attack_strength)
        rows = _attacked(one, parents[role], inputs, targets, reach, config)
        for name, changed in {UNDISTURBED: inputs, **rows}.items():
            found.setdefault(name, {})[role] = one.score_of(changed, targets, config.metric)
    return found


def _attacked(
    one: Judged, parent: Parent, inputs: np.ndarray, targets: np.ndarray, reach: Reach, config: EvaluateConfig
) -> dict[str, np.ndarray]:
    """Kind of attack -> changed network input, of the same shape as ``inputs``."""
    rng = np.random.default_rng(config.seed)
    if parent.network is None:
        return {"random signs": random_signs(lambda tried: one.losses(tried, targets), inputs, reach, rng)}
    return {
        "fgsm": fgsm(parent.network, inputs, targets, reach),
        "pgd": pgd(parent.network, inputs, targets, reach, rng),
    }


def movable(transform: FittedTransform) -> np.ndarray:
    """Which values of the network's input can change by a little: those of numbers and dates, and projections, (width,)."""
    if transform.components is not None:
        return np.ones(transform.width, dtype=bool)
    is_number = np.array([feature.kind in {"number", "date"} for feature in transform.features])
    return is_number[transform.origins]
