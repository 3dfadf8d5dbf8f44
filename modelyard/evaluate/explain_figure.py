"""Explanations as one picture, drawn without a display: what matters, by class, and behind the worst errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

SHOWN_COLUMNS = 15
SHOWN_CLASSES = 10
SHOWN_REASONS = 6
DIVERGING = "RdBu_r"


def explanation_figure(explained: Mapping[str, Any]) -> Figure:
    """The document of `modelyard.evaluate.explain.explain` as a figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    attribution, worst = explained["attribution"], explained["worst"]
    parts = [_draw_importance, *([_draw_classes] if attribution and attribution["by_class"] else [])]
    if any(one["attribution"] for one in worst):
        parts.append(_draw_worst)
    heights = {_draw_importance: 3.6, _draw_classes: 4.0 if explained["grid"] else 4.6, _draw_worst: 2.8}
    ratios = [heights[part] for part in parts]
    figure = Figure(figsize=(10, sum(ratios)), layout="constrained")
    FigureCanvasAgg(figure)
    rows = np.atleast_1d(np.asarray(figure.subfigures(len(parts), 1, height_ratios=ratios)))
    for part, row in zip(parts, rows, strict=True):
        part(row, explained)
    return figure


def explanation_png(explained: Mapping[str, Any]) -> bytes:
    """The same bytes for the same document and version of matplotlib."""
    buffer = BytesIO()
    explanation_figure(explained).savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    return buffer.getvalue()


def _draw_importance(part: SubFigure, explained: Mapping[str, Any]) -> None:
    """What the score loses without a column beside the mean size of its attributions."""
    attribution = explained["attribution"]
    measures = {
        "loss of score without the column": explained["importance"],
        "mean size of its attribution": attribution["global"] if attribution else None,
    }
    shown = {title: values for title, values in measures.items() if values is not None}
    axes = np.atleast_1d(np.asarray(part.subplots(1, max(len(shown), 1))))
    for one, (title, values) in zip(axes, shown.items(), strict=False):
        if explained["grid"]:
            _draw_map(one, values, explained["grid"])
        else:
            _draw_bars(one, explained["columns"], values, SHOWN_COLUMNS)
        one.set_title(title, fontsize=10)
    if not shown:
        axes[0].set_axis_off()


def _draw_classes(part: SubFigure, explained: Mapping[str, Any]) -> None:
    """What speaks for (red) and against (blue) each class, among the rows answered so."""
    by_class = dict(list(explained["attribution"]["by_class"].items())[:SHOWN_CLASSES])
    part.suptitle("what speaks for (red) and against (blue) each class", fontsize=10)
    if explained["grid"]:
        columns = min(len(by_class), 5)
        axes = np.atleast_1d(np.asarray(part.subplots(-(-len(by_class) // columns), columns))).ravel()
        for one in axes:
            one.set_axis_off()
        for one, (label, values) in zip(axes, by_class.items(), strict=False):
            _draw_map(one, values, explained["grid"])
            one.set_title(label, fontsize=9)
        return
    top = _largest(explained["attribution"]["global"], SHOWN_COLUMNS)
    table = np.array(list(by_class.values()))[:, top]
    axes = part.subplots()
    limit = np.abs(table).max() or 1.0
    image = axes.imshow(table, cmap=DIVERGING, vmin=-limit, vmax=limit, aspect="auto")
    axes.set_yticks(range(len(by_class)), list(by_class))
    axes.set_xticks(range(len(top)), [explained["columns"][at] for at in top], rotation=40, ha="right", fontsize=8)
    part.colorbar(image, ax=axes, shrink=0.8)


def _draw_worst(part: SubFigure, explained: Mapping[str, Any]) -> None:
    """The errors made with most confidence, and what moved the network to them."""
    worst = [one for one in explained["worst"] if one["attribution"]]
    part.suptitle("the worst errors, and what spoke for the answer", fontsize=10)
    for axes, one in zip(np.atleast_1d(np.asarray(part.subplots(1, len(worst)))), worst, strict=True):
        if explained["grid"]:
            axes.imshow(np.reshape(one["values"], explained["grid"]), cmap="gray_r", alpha=0.35)
            _draw_map(axes, one["attribution"], explained["grid"], alpha=0.7)
        else:
            _draw_bars(axes, explained["columns"], one["attribution"], SHOWN_REASONS)
        axes.set_title(_told(one), fontsize=8)


def _draw_map(axes: Axes, values: Sequence[float], grid: Sequence[int], alpha: float = 1.0) -> None:
    picture = np.reshape(values, grid)
    limit = np.abs(picture).max() or 1.0
    axes.imshow(picture, cmap=DIVERGING, vmin=-limit, vmax=limit, alpha=alpha)
    axes.set_axis_off()


def _draw_bars(axes: Axes, columns: Sequence[str], values: Sequence[float], count: int) -> None:
    top = _largest(values, count)[::-1]
    axes.barh(
        range(len(top)), [values[at] for at in top], color=["#b42318" if values[at] > 0 else "#2563eb" for at in top]
    )
    axes.set_yticks(range(len(top)), [columns[at][:24] for at in top], fontsize=8)
    axes.tick_params(axis="x", labelsize=7)
    axes.axvline(0, color="#98a2b3", linewidth=0.8)


def _largest(values: Sequence[float], count: int) -> list[int]:
    """Positions of the largest sizes, largest first."""
    return np.argsort(-np.abs(np.asarray(values)), kind="stable")[:count].tolist()


def _told(one: Mapping[str, Any]) -> str:
    """An error in two short lines."""
    truth, answer = _label(one["truth"]), _label(one["answer"])
    if isinstance(one["answer"], float):  # a regression's
        return f"{truth} in truth,\nanswered {answer}"
    return f"{truth} taken for {answer},\n{100 * one['confidence']:.0f} % sure"


def _label(value: object) -> str:
    return f"{value:,.6g}" if isinstance(value, float) else str(value)
