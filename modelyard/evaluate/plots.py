"""Pictures of a verdict, drawn without a display."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Beyond this, numbers in cells could not be read any more and colour has to do.
MAX_NUMBERED_CLASSES = 25


def confusion_figure(confusion: np.ndarray, classes: Sequence[str | int]) -> Figure:
    """A confusion matrix: counts as text, each row's shares as colour.

    Args:
        confusion: (k, k) counts, row: truth, column: prediction.
        classes: the k labels in that order.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # half a second, and only for who draws
    from matplotlib.figure import Figure

    counts = np.asarray(confusion)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(max(3.2, 0.5 * len(classes) + 1.6), 14)
    figure = Figure(figsize=(side + 0.9, side), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    hits = int(np.trace(counts))
    axes.set_title(f"{hits} of {int(counts.sum())} right", fontsize=11)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if len(classes) <= MAX_NUMBERED_CLASSES:
        _number_cells(axes, counts, shares, classes)
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.85)
    return figure


def _number_cells(axes: Axes, counts: np.ndarray, shares: np.ndarray, classes: Sequence[str | int]) -> None:
    labels = [str(label) for label in classes]
    upright = max(map(len, labels)) <= 3
    axes.set_xticks(range(len(labels)), labels, rotation=0 if upright else 90)
    axes.set_yticks(range(len(labels)), labels)
    axes.tick_params(length=0)
    for row, column in np.argwhere(counts > 0):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour, fontsize=9)
