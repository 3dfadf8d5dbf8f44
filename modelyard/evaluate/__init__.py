"""Evaluate: is a candidate good enough to serve? Float against compressed, candidate against champion, by gates.

A refusal is a result like any other, and committed as one; `refusal` turns it into the exception for whoever wants it.
"""

from modelyard.evaluate.config import EvaluateConfig
from modelyard.evaluate.plots import confusion_figure
from modelyard.evaluate.stage import CARD_FILE, GOLDEN_FILE, METRICS_FILE, REPORT_FILE, VERDICT_FILE, evaluate, refusal

__all__ = [
    "CARD_FILE",
    "GOLDEN_FILE",
    "METRICS_FILE",
    "REPORT_FILE",
    "VERDICT_FILE",
    "EvaluateConfig",
    "confusion_figure",
    "evaluate",
    "refusal",
]
