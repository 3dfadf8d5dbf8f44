"""The confusion matrix as people see it."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest

from modelyard.evaluate import confusion_figure

PNG = b"\x89PNG"


def test_cells_show_counts_and_axes_show_labels():
    """Every cell that counts something shows its number; the title says how many were right."""
    figure = confusion_figure(np.array([[5, 1], [0, 4]]), ["ant", "bee"])
    axes = figure.axes[0]
    assert sorted(text.get_text() for text in axes.texts) == ["1", "4", "5"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["ant", "bee"]
    assert axes.get_title() == "9 of 10 right"


@pytest.mark.parametrize("num_classes", [2, 10, 60])
def test_it_draws_without_a_display(num_classes: int):
    """Many classes lose their numbers, a class without rows divides nothing, and a picture comes out."""
    confusion = np.eye(num_classes, dtype=int) * 7
    confusion[0] = 0
    figure = confusion_figure(confusion, list(range(num_classes)))
    picture = BytesIO()
    figure.savefig(picture, format="png", dpi=40)
    assert picture.getvalue().startswith(PNG)
    assert bool(figure.axes[0].texts) == (num_classes <= 25)
