"""From what was counted of a canary and of the stable version beside it to a decision, whenever one asks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from modelyard.artifacts import Frozen
from modelyard.gates.checks import Check
from modelyard.gates.policy import GateSettings
from modelyard.gates.sequential import Flips, coin_flip_evidence, rate_evidence, upper_bound

# How the gates share `GateSettings.alpha`; where there is a bound on disagreement, it has half of the other bound's.
SHARES = {"errors": 0.4, "latency": 0.2, "quality": 0.2, "bound": 0.2}


class VersionCounts(Frozen):
    """What was counted of one version.

    Attributes:
        requests: drawn by weight and answered, the replayed ones included.
        replayed: of these, asked by the endpoint itself with held-out rows.
        stand_ins: of these, answered well by another version, because its own worker was dead: nothing to its credit.
        errors: answers that failed by the version's own fault.
        repeated: of these, those of a key (`Modelyard-Key`) that had failed before: no coins of their own.
        slow: pairs of requests, one of each version that came at the same time, of which only this version's was slower
            than the threshold. One pair in 0.1 s: a worker that stalls is slow many times over, and that is one event.
        odd: inputs that the model refused, outputs that were not finite; of each key the first.
        differing: of a canary in the shadow, copies that it answered otherwise than the stable version did.
        seconds: sum of all latencies.
    """

    requests: int = 0
    replayed: int = 0
    stand_ins: int = 0
    errors: int = 0
    repeated: int = 0
    slow: int = 0
    odd: int = 0
    differing: int = 0
    seconds: float = 0.0

    def plus(self, other: VersionCounts) -> VersionCounts:
        return VersionCounts(
            **{name: getattr(self, name) + getattr(other, name) for name in VersionCounts.model_fields}
        )

    @property
    def own(self) -> int:
        """Requests that tell how often it fails: not those that another version answered well in its place."""
        return self.requests - self.stand_ins

    @property
    def mean_seconds(self) -> float | None:
        return self.seconds / self.requests if self.requests else None


class StepCounts(Frozen):
    """Both versions, while the canary got ``weight`` percent of the requests."""

    weight: float
    canary: VersionCounts = VersionCounts()
    stable: VersionCounts = VersionCounts()


class Judgement(Frozen):
    """What the counts say now.

    Attributes:
        checks: every gate with its value against its limit.
        upper_error_rate: what the canary's rate of failing answers lies below, at ``promotion_alpha``.
        may_promote: whether that is within the bound.
        upper_disagreement: what the share of copies that it answers otherwise lies below, in the same way.
    """

    checks: list[Check]
    upper_error_rate: float
    may_promote: bool
    upper_disagreement: float = 1.0

    @property
    def reasons(self) -> list[str]:
        """Why the canary goes back; none: it may stay."""
        return [check.sentence for check in self.checks if not check.passed]


def merged(counts: Iterable[StepCounts]) -> list[StepCounts]:
    """Counts of several routers or times, added up weight by weight."""
    groups: dict[float, StepCounts] = {}
    for one in counts:
        known = groups.get(one.weight, StepCounts(weight=one.weight))
        groups[one.weight] = StepCounts(
            weight=one.weight, canary=known.canary.plus(one.canary), stable=known.stable.plus(one.stable)
        )
    return [groups[weight] for weight in sorted(groups)]


def total(counts: Iterable[StepCounts]) -> StepCounts:
    """All steps together; the weight of the sum means nothing."""
    both = StepCounts(weight=0)
    for one in counts:
        both = StepCounts(weight=0, canary=both.canary.plus(one.canary), stable=both.stable.plus(one.stable))
    return both


def judge(counts: Sequence[StepCounts], gates: GateSettings, num_steps: int) -> Judgement:
    """Hold the counts of a rollout so far, of its ``num_steps`` in all, against its gates."""
    checks = []
    if gates.errors:
        checks.append(_compared("errors", "failing answers", counts, gates))
    if gates.latency:
        checks.append(
            _compared("latency", "pairs of which only one was slow", counts, gates, gates.tolerated_slow_ratio)
        )
    if gates.quality:
        checks.append(_compared("quality", "refused inputs and answers that are no numbers", counts, gates))
    canary = total(counts).canary
    upper = upper_bound(canary.errors, canary.own, gates.promotion_alpha)
    bound, share = gates.max_error_rate, SHARES["bound"]
    if gates.max_disagreement is not None:
        share /= 2
        checks.append(_agreeing(counts, gates, gates.max_disagreement, share))
    if bound is not None:
        checks.append(_bounded(counts, gates, bound, num_steps, share))
    copies = _copies(counts)
    return Judgement(
        checks=checks,
        upper_error_rate=upper,
        may_promote=bound is None or upper <= bound,
        upper_disagreement=upper_bound(copies.differing, copies.requests, gates.promotion_alpha),
    )


def _copies(counts: Sequence[StepCounts]) -> VersionCounts:
    """What was counted of a canary in the shadow, where every request is a copy."""
    return total(one for one in counts if one.weight == 0).canary


def _agreeing(counts: Sequence[StepCounts], gates: GateSettings, bound: float, share: float) -> Check:
    """Whether the canary is shown to answer more of the copies otherwise than it may."""
    copies = _copies(counts)
    evidence, limit = rate_evidence(copies.differing, copies.requests, bound), 1 / (gates.alpha * share)
    sentence = (
        f"disagreement: {copies.differing} of {copies.requests} copied requests answered otherwise than by the stable"
        f" version, against the bound {bound:g}; evidence {evidence:.3g}, limit {limit:.3g}"
    )
    return Check(name="agreement", value=evidence, limit=limit, passed=evidence < limit, sentence=sentence)


def _compared(
    name: str, events: str, counts: Sequence[StepCounts], gates: GateSettings, tolerated_ratio: float = 1.0
) -> Check:
    """Whether bad events fall on the canary more often than its weight explains."""
    flips = [
        # A pair has one of each, so whose turn it is to be slow is an even coin, whatever the weight.
        Flips(
            0.5 if name == "latency" else one.weight / 100,
            canary=_events(one.canary, name),
            stable=_events(one.stable, name),
        )
        for one in counts
    ]
    evidence = coin_flip_evidence(flips, tolerated_ratio)
    limit = 1 / (gates.alpha * SHARES[name])
    both = total(counts)
    sentence = (
        f"{events}: {sum(flip.canary for flip in flips)} in {both.canary.requests} requests of the canary,"
        f" {sum(flip.stable for flip in flips)} in {both.stable.requests} of the stable version;"
        f" evidence {evidence:.3g}, limit {limit:.3g}"
    )
    return Check(name=name, value=evidence, limit=limit, passed=evidence < limit, sentence=sentence)


def _events(counts: VersionCounts, name: str) -> int:
    """The bad events that a gate takes for coins."""
    return {"errors": counts.errors - counts.repeated, "latency": counts.slow, "quality": counts.odd}[name]


def _bounded(counts: Sequence[StepCounts], gates: GateSettings, bound: float, num_steps: int, share: float) -> Check:
    """Whether the canary is shown to fail more often than the bound, at any one step.

    Each step has a test of its own, with its part of alpha, so that good steps before cannot hide a bad one.
    """
    steps = [one.canary for one in counts]
    evidence = max((rate_evidence(one.errors, one.own, bound) for one in steps), default=0.0)
    limit = num_steps / (gates.alpha * share)
    canary = total(counts).canary
    sentence = (
        f"rate of failing answers: {canary.errors} in {canary.own} requests of the canary against the bound"
        f" {bound:g}; evidence {evidence:.3g}, limit {limit:.3g}"
    )
    return Check(name="bound", value=evidence, limit=limit, passed=evidence < limit, sentence=sentence)
