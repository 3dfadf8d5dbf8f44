"""What several processes make of the same forms: how closely it is known who is as fast as the fastest, and when to stop."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

import numpy as np

from modelyard.compress.latency import Timing

# Numbers of processes after which one looks whether it is settled who is as fast as the fastest.
LOOKS = (4, 8, 16)
# That a search says of two forms what is not so. The looks share it.
ERROR = 0.001
TRIMMED = 0.2
# Batch size -> form -> what one fresh process measured.
Take = Mapping[int, Mapping[str, Timing]]


class Ratio(Protocol):
    """A latency over the reference's, and how far it could have come out otherwise, as a fraction; by process, if several
    measured it."""

    @property
    def ratio(self) -> float: ...

    @property
    def noise(self) -> float: ...

    @property
    def takes(self) -> Mapping[int, float]: ...


def until_settled(take: Callable[[Collection[str] | None], Take], batch: int, tie_fraction: float | None) -> list[Take]:
    """Processes, one after the other, until it is settled who is as fast as the fastest, within a bound. After the first look
    only those go on that may still be as fast.

    Args:
        take: measures in a fresh process; of these forms what decides, or everything of all.
        batch: the size that decides.
        tie_fraction: what is no difference; None: nobody asks who is the fastest.
    """
    takes = [take(None) for _ in range(LOOKS[0])]
    for look in LOOKS[1:]:
        seen = together(takes, batch)
        if tie_fraction is None or is_settled(seen, tie_fraction):
            break
        contenders = as_fast_as_any(seen, tie_fraction)
        takes += [take(contenders) for _ in range(look - len(takes))]
    return takes


def together(takes: Sequence[Take], batch: int) -> dict[str, Timing]:
    """Each form at one batch size, over the processes that measured it there."""
    at_size = {number: take[batch] for number, take in enumerate(takes) if batch in take}
    return {
        name: combined({number: take[name] for number, take in at_size.items() if name in take})
        for name in takes[0][batch]
    }


def combined(takes: Mapping[int, Timing]) -> Timing:
    """One form as several processes measured it, one after the other, each for itself.

    They differ by more than the turns of any one of them tell (measured: by 3 % where those said 1 %): where memory lies, and
    what else ran meanwhile. So the noise is the interval of the mean over processes, or that of the turns if it is wider.

    Args:
        takes: number of the process -> what it measured.
    """
    ratios, every = {number: take.ratio for number, take in takes.items()}, takes.values()
    ratio, between = mean_and_half_width(ratios.values(), 0.95)
    within = math.hypot(*(take.noise for take in every)) / len(takes)
    return Timing(
        p50_ms=round(statistics.median(take.p50_ms for take in every), 5),
        p99_ms=round(statistics.median(take.p99_ms for take in every), 5),
        ratio=round(ratio, 4),
        noise=round(max(within, between / ratio), 4),
        takes=ratios,
    )


def mean_and_half_width(values: Collection[float], confidence: float) -> tuple[float, float]:
    """Mean of a few numbers without the fifth on either end, and half the width of its two-sided interval (Tukey and McLaughlin
    1963): one process that something else held up does not hide what the others agree on. Of fewer than five it is Student's.

    The half width of a single number is 0.
    """
    from scipy.special import stdtrit

    ordered = np.sort(np.fromiter(values, dtype=np.float64))
    count, cut = len(ordered), int(TRIMMED * len(ordered))
    kept = ordered[cut : count - cut]
    if count == 1:
        return float(kept[0]), 0.0
    pulled_in = np.clip(ordered, kept[0], kept[-1])
    error = pulled_in.std(ddof=1) * math.sqrt(count) / len(kept)
    return float(kept.mean()), float(stdtrit(len(kept) - 1, (1 + confidence) / 2) * error)


def slower_by(mine: Ratio, other: Ratio) -> tuple[float, float]:
    """Ends of the interval in which the quotient of two latencies lies: 0.1 is 10 % slower.

    Of the processes that measured both, each gives one quotient: what held up both, or the reference, falls out.
    """
    both = sorted(set(mine.takes) & set(other.takes))
    if len(both) > 1:
        quotients = [math.log(mine.takes[take] / other.takes[take]) for take in both]
        mean, half = mean_and_half_width(quotients, 1 - ERROR / len(LOOKS))
        return math.expm1(mean - half), math.expm1(mean + half)
    quotient, spread = mine.ratio / other.ratio, math.hypot(mine.noise, other.noise)
    return quotient * (1 - spread) - 1, quotient * (1 + spread) - 1


def as_fast_as_any(ratios: Mapping[str, Ratio], tie_fraction: float) -> list[str]:
    """Forms that are not shown to be slower than any other by more than that."""
    return [
        name
        for name, mine in ratios.items()
        if not any(slower_by(mine, other)[0] > tie_fraction for other in ratios.values())
    ]


def is_settled(ratios: Mapping[str, Ratio], tie_fraction: float) -> bool:
    """Whether each form is shown to be slower than some other by more than that, or shown not to be slower than the fastest
    by more."""
    fast = as_fast_as_any(ratios, tie_fraction)
    fastest = min(ratios, key=lambda name: ratios[name].ratio)
    return all(slower_by(ratios[name], ratios[fastest])[1] <= tie_fraction for name in fast if name != fastest)
