"""Evaluate: is a candidate good enough to serve? Float against compressed, candidate against champion, by gates.

A refusal is a result like any other, and committed as one; `refusal` turns it into the exception for whoever wants it.
"""

from modelyard.evaluate.config import EvaluateConfig, judged_metrics
from modelyard.evaluate.explain_figure import explanation_figure
from modelyard.evaluate.files import (
    CARD_FILE,
    EXPLANATIONS_FILE,
    EXPLANATIONS_PICTURE,
    GOLDEN_FILE,
    METRICS_FILE,
    REPORT_FILE,
    VERDICT_FILE,
)
from modelyard.evaluate.plots import confusion_figure
from modelyard.evaluate.stage import evaluate, refusal

__all__ = [
    "CARD_FILE",
    "EXPLANATIONS_FILE",
    "EXPLANATIONS_PICTURE",
    "GOLDEN_FILE",
    "METRICS_FILE",
    "REPORT_FILE",
    "VERDICT_FILE",
    "EvaluateConfig",
    "confusion_figure",
    "evaluate",
    "explanation_figure",
    "judged_metrics",
    "refusal",
]
