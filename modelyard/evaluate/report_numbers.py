"""What a verdict's numbers say, in words, and a regression's answers as a drawing: the parts of its page that are worked out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

LEFT, BOTTOM, SIDE = 60.0, 250.0, 230.0  # of the drawing of answers
MEANINGS = {
    "accuracy": "share of the rows that are answered right",
    "macro_f1": "F1 (between precision and recall), mean over the classes",
    "roc_auc": "how often a row of a class is ranked above a row of the others, mean over the classes",
    "calibration_error": "distance between how sure and how right it is, less is better",
    "r2": "share of the target's variance that is explained",
    "mae": "mean error in the target's own units, less is better",
    "rmse": "root of the mean squared error in the target's own units, less is better",
    "spearman": "correlation of ranks with what people said",
    "pearson": "correlation with what people said",
    "recall_at_1": "how often the right one comes first",
    "recall_at_10": "how often it is among the first ten",
    "recall_at_100": "how often it is among the first hundred",
    "ndcg_at_10": "the same, worth less further down",
    "mrr": "mean of one over the place of the right one",
    "cosine_to_float": "how near vectors lie to the float form's, mean",
    "smallest_cosine_to_float": "the same of the worst row",
    "bits_per_byte": "bits that a byte of text costs, less is better",
    "perplexity": "how many tokens it hesitates between, less is better",
    "span_f1": "F1 of whole spans",
    "macro_span_f1": "the same, mean over the labels",
    "span_precision": "share of the spans found that are right",
    "span_recall": "share of the spans there that are found",
}


def in_short(verdict: Mapping[str, Any]) -> list[str]:
    """The few sentences that a person reads first."""
    metric, said = verdict["metric"], []
    if sure := verdict["scores"].get("candidate"):
        said.append(
            f"{metric} is {short(sure['value'])}; {100 * sure['confidence']:g} % sure: between {short(sure['low'])} and"
            f" {short(sure['high'])}"
        )
    if float_form := verdict["scores"].get("float"):
        said.append(f"its float form has {short(float_form['value'])}" + _smaller(verdict["sizes"]))
    if verdict["comparison"]:
        better = verdict["comparison"]["probability_better"]
        said.append(f"it is better than the champion with a probability of {100 * better:.1f} %")
    if worst := next((one for one in verdict["slices"] if one["is_decisive"]), None):
        said.append(f"it is worst for {worst['name']}: {short(worst['score']['value'])} on {worst['rows']:,} rows")
    for key, words in (("disturbed", "when disturbed"), ("attacked", "under attack")):
        kinds = {
            kind: scores["candidate"]
            for kind, scores in verdict[key].items()
            if kind != "undisturbed" and scores.get("candidate") is not None
        }
        if kinds:
            kind = min(kinds, key=lambda one: kinds[one])
            said.append(f"{words} it falls to {short(kinds[kind])} ({kind})")
    return said


def _smaller(sizes: Mapping[str, float]) -> str:
    own, whole = sizes.get("candidate"), sizes.get("float")
    return f", in {whole / own:.1f} times the bytes" if own and whole and own != whole else ""


def meanings(names: Sequence[str], *, classifies: bool) -> list[tuple[str, str]]:
    """What each score is, in their order."""
    loss = "what it was trained to make small"
    if classifies:
        loss = "cross-entropy in nats, less is better"
    elif "r2" in names:
        loss = "mean squared error of the standardised target, less is better"
    return [(name, {**MEANINGS, "loss": loss}[name]) for name in names if name in MEANINGS or name == "loss"]


def scatter(points: Sequence[Sequence[float]]) -> dict[str, Any] | None:
    """Where truth and answer of some rows lie in a drawing whose two axes have one scale; None without rows."""
    if not points:
        return None
    low, high = float(np.min(points)), float(np.max(points))
    span = (high - low) or 1.0
    return {
        "low": low,
        "high": high,
        "points": [
            {
                "x": round(LEFT + SIDE * (truth - low) / span, 1),
                "y": round(BOTTOM - SIDE * (answer - low) / span, 1),
            }
            for truth, answer in points
        ],
    }


def error_quantiles(points: Sequence[Sequence[float]]) -> tuple[float, float] | None:
    """Half of the errors, and nine in ten, are no larger than these."""
    if not points:
        return None
    errors = [abs(answer - truth) for truth, answer in points]
    half, most = np.quantile(errors, [0.5, 0.9])
    return float(half), float(most)


def short(value: float | None) -> str:
    """Four decimals, or none where the number is large: bytes; a dash for what could not be computed."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4f}"
