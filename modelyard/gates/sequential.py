"""Tests that may be looked at after every request: e-processes and confidence sequences over counts.

An e-process starts at 1 and, while its null hypothesis holds, is no likelier to ever reach ``1 / alpha`` than ``alpha``
(Ville's inequality). So a gate may read it after every request, stop whenever it likes, and go on later. All of it is
arithmetic over counts: those of several routers, or of several steps, are added up first.

* `coin_flip_evidence`: is the canary worse than the stable version? Lindon & Malek, "Anytime-valid inference for
  multinomial count data", NeurIPS 2022, arXiv 2011.03567.
* `rate_evidence`, `upper_bound`: is a rate above, or below, a bound? A Beta mixture of binomial likelihood ratios;
  Howard, Ramdas, McAuliffe & Sekhon, "Time-uniform, nonparametric, nonasymptotic confidence sequences", Annals of
  Statistics 2021, arXiv 1810.08240.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

# How many times as often as the stable version the canary might do something bad: from a little worse to an outage.
RATIOS = (2.0, 4.0, 10.0, 40.0, 200.0)
PRIOR = 0.5  # of both parameters of the Beta mixture
_LARGEST_EXPONENT = 700.0  # `math.exp` goes no further


class Flips(NamedTuple):
    """Bad events that happened while the canary got ``weight`` (0 to 1) of the requests."""

    weight: float
    canary: int
    stable: int


def coin_flip_evidence(flips: Iterable[Flips], tolerated_ratio: float = 1.0) -> float:
    """The e-value against "the canary is at most ``tolerated_ratio`` times as often bad as the stable version".

    If the two are equal, each bad event falls on the canary with probability equal to its weight, whatever the rate of
    bad events does over time: bursts, ramps of the weight and hours of the day cancel out. The alternatives are that
    the canary is r times as often bad, for r of `RATIOS` times what is tolerated; their likelihood ratios are averaged.
    """
    groups = [group for group in flips if 0 < group.weight < 1]
    mean = 0.0
    for ratio in RATIOS:
        exponent = sum(_log_ratio(group, ratio * tolerated_ratio, tolerated_ratio) for group in groups)
        mean += math.exp(min(exponent, _LARGEST_EXPONENT)) / len(RATIOS)
    return mean


def rate_evidence(bad: int, total: int, bound: float) -> float:
    """The e-value against "no more than ``bound`` of all are bad"; 0 while fewer than that are."""
    if total == 0 or bad / total <= bound:
        return 0.0
    return math.exp(min(_log_mixture(bad, total, bound), _LARGEST_EXPONENT))


def upper_bound(bad: int, total: int, alpha: float) -> float:
    """What the true rate lies below, at all times at once, with probability 1 - ``alpha``.

    0 bad of 1,000 show, at 1 %, that fewer than 0.9 % are bad.
    """
    if total == 0:
        return 1.0
    limit, low, high = math.log(1 / alpha), bad / total, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        if _log_mixture(bad, total, middle) < limit:
            low = middle
        else:
            high = middle
    return high


def _log_ratio(group: Flips, alternative: float, null: float) -> float:
    """Log likelihood of where the bad events fell, if the canary is ``alternative`` times as bad, against ``null``."""
    weight, canary, stable = group
    odds = (1 - weight + weight * null) / (1 - weight + weight * alternative)
    return canary * math.log(alternative / null) + (canary + stable) * math.log(odds)


def _log_mixture(bad: int, total: int, rate: float) -> float:
    """Log of the Beta mixture of binomial likelihoods over the likelihood at ``rate``."""
    good = total - bad
    if (bad and rate <= 0) or (good and rate >= 1):
        return math.inf
    mixture = _log_beta(PRIOR + bad, PRIOR + good) - _log_beta(PRIOR, PRIOR)
    return mixture - (bad * math.log(rate) if bad else 0) - (good * math.log1p(-rate) if good else 0)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
