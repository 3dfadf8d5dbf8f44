"""Who is ended early: a bar, fixed when a trial begins, and the judge that holds the trial to it.

The bar is a plain list of numbers, so a trial that was interrupted is gone on with under the same one, and a process that
trains needs to know nothing of the study.

    median    the median stopping rule of Golovin et al., "Google Vizier", KDD 2017, section 3.2
    halving   the stopping form of asynchronous successive halving, Li et al. 2018 (arXiv 1810.05934)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING

from modelyard.errors import TrialPruned
from modelyard.tune.config import TuneConfig

if TYPE_CHECKING:
    from modelyard.tune.study import Told


def bar_of(config: TuneConfig, told: Mapping[int, Told], lower_is_better: bool) -> dict[int, float]:
    """What the best validation of a new trial is compared with: number of the validation, from 1 -> metric.

    Returns:
        nothing before ``startup`` trials are finished, or with the pruner ``none``.
    """
    finished = [one for one in told.values() if one.outcome == "finished" and one.values]
    if config.pruner == "none" or len(finished) < config.startup:
        return {}
    if config.pruner == "median":
        longest = max(len(one.values) for one in finished)
        # Who stopped by itself (patience) stands where it stopped.
        return {
            number: median(best_of(one.values[:number], lower_is_better) for one in finished)
            for number in range(config.warmup + 1, longest + 1)
        }
    return _rungs(config, [one.values for one in told.values() if one.values], lower_is_better)


def best_of(values: Sequence[float], lower_is_better: bool) -> float:
    return min(values) if lower_is_better else max(values)


class Judge:
    """Watches one trial's validations.

    Args:
        bar: of `bar_of`.
        seconds: until the time of the tuning is over; None: there is no bound.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        bar: Mapping[int, float],
        *,
        lower_is_better: bool,
        seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bar = bar
        self._lower = lower_is_better
        self._clock = clock
        self._deadline = None if seconds is None else clock() + seconds
        self._seen: dict[int, float] = {}
        self.time_is_over = False

    @property
    def values(self) -> list[float]:
        """The metric at each validation so far."""
        return [self._seen[step] for step in sorted(self._seen)]

    def remember(self, step: int, value: float) -> None:
        """Take in a validation of before, without a judgement."""
        # A training that went back makes the steps since its checkpoint again.
        self._seen = {known: old for known, old in self._seen.items() if known < step}
        self._seen[step] = value

    def hear(self, step: int, value: float) -> None:
        """Take in a validation.

        Raises:
            TrialPruned: the trial is behind the bar, or the time is over.
        """
        self.remember(step, value)
        values = self.values
        best, bar = best_of(values, self._lower), self._bar.get(len(values))
        if bar is not None and (best > bar if self._lower else best < bar):
            raise TrialPruned(f"{best:.4f} after {len(values)} validations is behind the bar of {bar:.4f}")
        if self._deadline is not None and self._clock() > self._deadline:
            self.time_is_over = True
            raise TrialPruned(f"tune.max_seconds are over after {len(values)} validations")


def _rungs(config: TuneConfig, curves: Sequence[Sequence[float]], lower_is_better: bool) -> dict[int, float]:
    bar: dict[int, float] = {}
    rung = config.warmup
    while rung <= max(map(len, curves)):
        reached = [best_of(values[:rung], lower_is_better) for values in curves if len(values) >= rung]
        ranked = sorted(reached, reverse=not lower_is_better)
        allowed = max((len(ranked) + 1) // config.reduction, 1)  # the new trial counts as one of them
        bar[rung] = ranked[allowed - 1]
        rung *= config.reduction
    return bar
