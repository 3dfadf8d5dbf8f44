"""A picture of a rollout: who had which weight when, and how the evidence grew."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from modelyard.ledger import Span
from modelyard.rollout.watch import Look

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE_INCHES = (8, 5)
LEAD = 0.05  # of the whole: what is shown of the time before the rollout
LOWEST = 1e-2  # evidence below this says the same: nothing


def timeline(spans: Sequence[Span], looks: Sequence[Look], title: str, began_at: str) -> Figure:
    """Weights by version above, each gate's evidence against its limit below; both over seconds since the rollout began.

    Args:
        spans: of one model; what served before may have begun long ago, and is shown as far as it is beside the rollout.
        looks: what was seen of it; none where nothing was judged.
        began_at: time of the rollout's first revision, ISO 8601.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # half a second, and only for who draws
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[2, 3])
    began = _seconds(began_at)
    last = max([*(_seconds(span.begin) for span in spans), *(_seconds(span.end) for span in spans if span.end), began])
    end = max(last - began, *(look.seconds for look in looks), 1.0) * 1.05 if looks else last - began + 1.0
    _draw_weights(upper, spans, began, end)
    upper.set_xlim(-LEAD * end, end)
    _draw_evidence(lower, looks)
    upper.set_title(title)
    lower.set_xlabel("seconds since the rollout began")
    return figure


def _draw_weights(axes: Axes, spans: Sequence[Span], began: float, end: float) -> None:
    for number, version in enumerate(dict.fromkeys(span.version for span in spans)):
        edges, weights = [-LEAD * end], [0.0]
        for span in sorted((span for span in spans if span.version == version), key=lambda span: span.revision):
            begin = max(_seconds(span.begin) - began, -LEAD * end)
            finish = _seconds(span.end) - began if span.end else end
            edges += [begin, begin, finish, finish]
            weights += [0.0, span.weight, span.weight, 0.0]
        axes.plot(edges, weights, color=f"C{number}", label=f"version {version}")
        axes.fill_between(edges, weights, color=f"C{number}", alpha=0.15)
    axes.set_ylabel("% of the requests")
    axes.set_ylim(0, 105)
    axes.legend(loc="center right")


def _draw_evidence(axes: Axes, looks: Sequence[Look]) -> None:
    names = dict.fromkeys(check.name for look in looks for check in look.checks)
    for number, name in enumerate(names):
        points = [(look.seconds, check) for look in looks for check in look.checks if check.name == name]
        seconds = [at for at, _ in points]
        axes.plot(seconds, [max(check.value or 0, LOWEST) for _, check in points], color=f"C{number}", label=name)
        axes.plot(seconds, [check.limit or LOWEST for _, check in points], color=f"C{number}", linestyle=":")
    axes.set_yscale("log")
    axes.set_ylabel("evidence (dotted: its limit)")
    if names:
        axes.legend(loc="upper right")
    else:
        axes.text(0.5, 0.5, "nothing was judged", ha="center", va="center", transform=axes.transAxes)


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()
