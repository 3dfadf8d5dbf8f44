"""Rollouts without an endpoint: requests are drawn from known rates, and the gates look after each bad event."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from modelyard.gates import RolloutPolicy, StepCounts, VersionCounts, judge

KINDS = ("errors", "slow", "odd")
SLOW = KINDS.index("slow")
LOOKS = 50  # canary requests between two looks at whether it may be promoted


@dataclass(frozen=True)
class Rates:
    """How often a version's answers are bad."""

    errors: float = 0.002
    slow: float = 0.1
    odd: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """``promoted``, ``rolled_back`` or ``waiting``, after so many requests of the canary."""

    what: str
    num_requests: int


def simulate(
    canary: Rates, stable: Rates, rng: np.random.Generator, policy: RolloutPolicy | None = None, patience: int = 20_000
) -> Outcome:
    """One rollout by the policy's steps, until it is decided or its canary had ``patience`` requests.

    Each request of the canary has a request of the stable version that came with it, for the latency gate.

    A canary that is above its bound for ever is never promoted: it stays at its last step.
    """
    policy = policy or RolloutPolicy()
    done: list[StepCounts] = []
    num_before = 0
    partial = policy.weights[:-1]
    for step, weight in enumerate(partial):
        is_last = step == len(partial) - 1
        length = patience - num_before if is_last else policy.min_requests
        bad = np.stack([rng.random(length) < getattr(canary, kind) for kind in KINDS])
        others = rng.negative_binomial(1, weight / 100, size=length)
        bad_others = np.stack([rng.binomial(others, getattr(stable, kind)) for kind in KINDS]).cumsum(axis=1)
        partner = rng.random(length) < stable.slow
        bad_others[SLOW] = (partner & ~bad[SLOW]).cumsum()
        bad[SLOW] &= ~partner
        counts, others = bad.cumsum(axis=1), others.cumsum()
        look = np.logical_or.reduce(bad)
        look[policy.min_requests :: LOOKS] = True
        for at in np.flatnonzero(look):
            now = StepCounts(
                weight=weight,
                canary=_counts(at + 1, counts[:, at]),
                stable=_counts(others[at], bad_others[:, at]),
            )
            said = judge([*done, now], policy.gates, len(policy.weights))
            if said.reasons:
                return Outcome("rolled_back", num_before + int(at) + 1)
            if is_last and at >= policy.min_requests and said.may_promote:
                return Outcome("promoted", num_before + int(at) + 1)
        done.append(
            StepCounts(
                weight=weight, canary=_counts(length, counts[:, -1]), stable=_counts(others[-1], bad_others[:, -1])
            )
        )
        num_before += length
    return Outcome("waiting", num_before)


def tally(canary: Rates, stable: Rates, num_rollouts: int, seed: int, patience: int = 20_000) -> Counter[str]:
    """How many of these rollouts ended how."""
    rng = np.random.default_rng(seed)
    return Counter(simulate(canary, stable, rng, patience=patience).what for _ in range(num_rollouts))


def median_requests(canary: Rates, stable: Rates, num_rollouts: int, seed: int) -> float:
    """Median of the canary requests until the rollback, infinite where there is none."""
    rng = np.random.default_rng(seed)
    ends = [simulate(canary, stable, rng, patience=3000) for _ in range(num_rollouts)]
    return float(np.median([end.num_requests if end.what == "rolled_back" else np.inf for end in ends]))


def _counts(num: int, bad: np.ndarray) -> VersionCounts:
    return VersionCounts(requests=int(num), **{kind: int(count) for kind, count in zip(KINDS, bad, strict=True)})
