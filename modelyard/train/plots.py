"""The course of a training as a picture: losses and learning rate over optimizer steps, drawn without a display."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelyard.train.events import RankEvent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_POINTS = 2000
LOG_FROM = 20.0  # a loss that falls by more than this factor is drawn on a logarithmic axis


class Curves:
    """What ranks report, thinned to what a picture can show: beyond `MAX_POINTS` every other point goes."""

    def __init__(self) -> None:
        self._stride = self._num_seen = 0
        self.steps: list[tuple[int, float, float]] = []  # step, loss, learning rate
        self.validations: list[tuple[int, float]] = []  # step, loss

    def add(self, event: RankEvent) -> None:
        """Take note of an event; those that hold no loss are passed over."""
        if event.kind == "validation":
            # After a lost rank the steps since the last checkpoint are made again: what was drawn of them goes.
            self.validations = [point for point in self.validations if point[0] < event.step]
            self.validations.append((event.step, event.values["loss"]))
        elif event.kind == "started":
            self.steps = [point for point in self.steps if point[0] <= event.values["resumed_steps"]]
        elif event.kind == "progress" and "loss" in event.values:
            self._num_seen += 1
            if self._num_seen % (2**self._stride) == 0:
                self.steps.append((event.step, event.values["loss"], event.values["learning_rate"]))
        if len(self.steps) > MAX_POINTS:
            self.steps, self._stride = self.steps[::2], self._stride + 1

    def __bool__(self) -> bool:
        return bool(self.validations)


def training_figure(curves: Curves, title: str) -> Figure:
    """Training and validation loss above, the learning rate below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    _draw_losses(above, curves)
    above.set_title(title, fontsize=11)
    if curves.steps:
        below.plot([point[0] for point in curves.steps], [point[2] for point in curves.steps], color="tab:gray")
    below.set_ylabel("learning rate")
    below.set_ylim(bottom=0)
    below.set_xlabel("optimizer steps")
    return figure


def _draw_losses(axes: Axes, curves: Curves) -> None:
    if curves.steps:
        axes.plot(
            [point[0] for point in curves.steps], [point[1] for point in curves.steps], linewidth=1, label="training"
        )
    axes.plot(
        [point[0] for point in curves.validations],
        [point[1] for point in curves.validations],
        marker="o",
        markersize=3,
        label="validation",
    )
    losses = [point[1] for point in (*curves.steps, *curves.validations)]
    if min(losses) > 0 and max(losses) > LOG_FROM * min(losses):
        axes.set_yscale("log")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
