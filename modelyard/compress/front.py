"""A search as people look at it: a table of all candidates, and a picture of size against latency."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any

from modelyard.compress.outcomes import Decision, Standing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"winner": "#1a7f37", "loser": "#57606a", "outside": "#cf222e", "fell": "#cf222e", "dropped": "#cf222e"}


def table(decision: Decision) -> list[dict[str, Any]]:
    """One row a candidate: what it is, what it costs, how it ended and why."""
    return [_row(standing) for standing in decision.standings]


def front_figure(decision: Decision) -> Figure:
    """Size against latency at the first batch size, for what was measured; the Pareto front is drawn as a line.

    The front is over size, latency and the main metric's drop: a point on it may look beaten in two dimensions.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # half a second, and only for who draws
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shown = [one for one in decision.standings if one.built and one.measured]
    for one in shown:
        _point(axes, one)
    front = sorted(_place(one) for one in shown if one.on_front)
    axes.step([x for x, _ in front], [y for _, y in front], where="post", color="#0969da", alpha=0.4, zorder=1)
    batch = next(iter(shown[0].measured.latency)) if shown and shown[0].measured else 1
    axes.set_xlabel("size of the form, kB")
    axes.set_ylabel(f"latency at batch {batch}, float = 1")
    axes.set_title(f"{decision.winner}: {decision.why}", fontsize=9, wrap=True)
    return figure


def front_png(decision: Decision) -> bytes:
    """The picture as a file."""
    buffer = BytesIO()
    front_figure(decision).savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _row(one: Standing) -> dict[str, Any]:
    built, measured = one.built, one.measured
    row: dict[str, Any] = {"candidate": one.name, "outcome": one.outcome, "gain": one.gain or "-"}
    row |= {"front": "yes" if one.on_front else ""}
    row |= {
        "size_bytes": built.size_bytes if built else "-",
        "parameters": built.parameters if built else "-",
        "macs": built.macs if built else "-",
    }
    for name, drop in built.drops.items() if built else ():
        row[name] = round(drop.value, 4)
    for batch, latency in measured.latency.items() if measured else ():
        row |= {f"batch_{batch}_p50_ms": latency.p50_ms, f"batch_{batch}_p99_ms": latency.p99_ms}
        row |= {f"batch_{batch}_of_float": latency.ratio}
    return row | {"why": one.reason}


def _place(one: Standing) -> tuple[float, float]:
    assert one.built
    assert one.measured
    return one.built.size_bytes / 1000, next(iter(one.measured.latency.values())).ratio


def _point(axes: Axes, one: Standing) -> None:
    x, y = _place(one)
    marker = "*" if one.outcome == "winner" else "o"
    axes.scatter([x], [y], color=COLOURS[one.outcome], marker=marker, s=120 if marker == "*" else 30, zorder=2)
    axes.annotate(one.name, (x, y), xytext=(5, 4), textcoords="offset points", fontsize=8)
