"""A study as people look at it: a table of all trials, and a picture of how it went."""

from __future__ import annotations

import json
from io import BytesIO
from typing import TYPE_CHECKING, Any

from modelyard.metrics import LOWER_IS_BETTER
from modelyard.tune.pruning import best_of
from modelyard.tune.study import Decision, Standing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"winner": "#1a7f37", "loser": "#0969da", "pruned": "#bf8700", "failed": "#cf222e"}
MAX_KEYS = 6  # drawn; the table has all


def table(decision: Decision) -> list[dict[str, Any]]:
    """One row a trial, the best first: what it tried, what it reached, how it ended and why."""
    lower = decision.metric in LOWER_IS_BETTER
    worst = float("inf") if lower else float("-inf")
    ranked = sorted(
        decision.standings,
        key=lambda one: (one.told.outcome != "finished", _reached(one, worst) * (1 if lower else -1), one.told.loss),
    )
    return [_row(one, decision.metric) for one in ranked]


def study_figure(decision: Decision) -> Figure:
    """Each trial's best validation with the best so far; which keys mattered; each key against the metric."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # half a second, and only for who draws
    from matplotlib.figure import Figure

    keys = sorted(decision.best.parameters, key=lambda key: -decision.importance.get(key, 0.0))[:MAX_KEYS]
    figure = Figure(figsize=(9, 4 + 2.6 * -(-len(keys) // 3)), layout="constrained")
    FigureCanvasAgg(figure)
    num_lines = -(-len(keys) // 3)
    above, below = figure.subfigures(2, 1, height_ratios=(4, 2.6 * num_lines))  # ty: ignore[not-iterable]
    history, importance = above.subplots(1, 2, width_ratios=(2, 1))
    _draw_history(history, decision)
    _draw_importance(importance, decision)
    for axes, key in zip(below.subplots(num_lines, 3, squeeze=False).flat, keys, strict=False):
        _draw_key(axes, decision, key)
    for axes in below.axes[len(keys) :]:
        axes.set_axis_off()
    figure.suptitle(decision.why, fontsize=9)
    return figure


def study_png(decision: Decision) -> bytes:
    """The picture as a file."""
    buffer = BytesIO()
    study_figure(decision).savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _row(one: Standing, metric: str) -> dict[str, Any]:
    value = one.told.value
    row: dict[str, Any] = {
        "trial": one.number,
        "outcome": one.outcome,
        metric: "-" if value is None else round(value, 5),
    }
    row |= {"validations": len(one.told.values), "seconds": round(one.told.seconds, 1)}
    return row | {key: _short(value) for key, value in one.parameters.items()} | {"why": one.told.reason}


def _reached(one: Standing, otherwise: float) -> float:
    return otherwise if one.told.value is None else one.told.value


def _short(value: Any) -> str | int | float:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    return value if isinstance(value, int) else json.dumps(value) if not isinstance(value, str) else value


def _draw_history(axes: Axes, decision: Decision) -> None:
    shown = [one for one in decision.standings if one.told.value is not None]
    for one in shown:
        marker = "*" if one.outcome == "winner" else "x" if one.outcome == "pruned" else "o"
        axes.scatter([one.number], [one.told.value], color=COLOURS[one.outcome], marker=marker, s=90 if marker == "*" else 28, zorder=2)  # fmt: skip
    for one in decision.standings:
        if one.outcome == "failed":
            axes.axvline(one.number, color=COLOURS["failed"], alpha=0.3, linewidth=1)
    finished = [one for one in shown if one.told.outcome == "finished"]
    lower = decision.metric in LOWER_IS_BETTER
    values = [_reached(one, 0.0) for one in finished]
    so_far = [best_of(values[: place + 1], lower) for place in range(len(values))]
    axes.step([one.number for one in finished], so_far, where="post", color="#57606a", linewidth=1, zorder=1)
    axes.set_xlabel("trial (x: pruned, red line: failed)")
    axes.set_ylabel(f"{decision.metric}, validation")
    axes.grid(alpha=0.3)


def _draw_importance(axes: Axes, decision: Decision) -> None:
    ranked = sorted(decision.importance.items(), key=lambda item: item[1])
    axes.barh([key.rpartition(".")[2] for key, _ in ranked], [share for _, share in ranked], color="#57606a")
    axes.set_title("importance" if ranked else "too few finished trials to say what mattered", fontsize=9)
    axes.set_xlim(0, 1)
    if not ranked:
        axes.set_axis_off()


def _draw_key(axes: Axes, decision: Decision, key: str) -> None:
    """A key's values against the metric; values that are no numbers side by side."""
    shown = [one for one in decision.standings if one.told.value is not None]
    values = [one.parameters[key] for one in shown]
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    labels = list(dict.fromkeys(str(_short(value)) for value in values))
    places = values if numbers else [labels.index(str(_short(value))) for value in values]
    axes.scatter(places, [one.told.value for one in shown], c=[COLOURS[one.outcome] for one in shown], s=18)
    if not numbers:
        axes.set_xticks(range(len(labels)), labels, fontsize=7)
    elif min(places) > 0 and max(places) > 20 * min(places):
        axes.set_xscale("log")
    axes.set_title(key, fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)
