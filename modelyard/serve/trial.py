"""One rollout as this router sees it: which version a request was drawn for, and what became of it.

Counting happens on the path of every request while a rollout is under way, so it is a few additions; the arithmetic
over the counts is `modelyard.gates`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import cached_property
from statistics import median

from modelyard.gates import Judgement, StepCounts, VersionCounts, judge, merged, total
from modelyard.revisions import APPROVAL, RolloutUnderWay
from modelyard.serve.pairs import Keys, LatencyPairs
from modelyard.serve.running import RunningVersion
from modelyard.serve.shadow import Copier

LATENCIES_KEPT = 1000


class Counter:
    """What was counted of one version in one step."""

    __slots__ = (
        "consecutive_errors", "differing", "errors", "odd", "repeated", "replayed", "requests", "seconds", "slow", "stand_ins",
    )  # fmt: skip

    def __init__(self) -> None:
        self.requests = self.replayed = self.errors = self.repeated = self.slow = self.odd = self.differing = 0
        self.stand_ins = self.consecutive_errors = 0
        self.seconds = 0.0

    def frozen(self) -> VersionCounts:
        return VersionCounts(**{name: getattr(self, name) for name in VersionCounts.model_fields})


class Trial:
    """A rollout's canary and its stable version, between two revisions.

    Attributes:
        others: what other replicas have counted at this step.
        is_over: whether the canary lost its weight here; from then on nothing is counted.
        copier: copies requests while the canary is in the shadow; None while it has a weight.
        unwritten: what was decided, and why the store does not take it; empty where nothing is owed.
        last_live: when somebody else than the endpoint itself last asked, on the monotonic clock.
    """

    def __init__(
        self,
        model: str,
        rollout: RolloutUnderWay,
        stable: RunningVersion,
        canary: RunningVersion,
        *,
        restarts_before: int,
        on_bad: Callable[[Trial], None],
    ) -> None:
        self.model = model
        self.rollout = rollout
        self.stable = stable
        self.canary = canary
        self.others: list[StepCounts] = []
        self.is_over = False
        self.unwritten = ""
        self.began = self.last_live = time.monotonic()
        self.latencies: deque[float] = deque(maxlen=LATENCIES_KEPT)  # of the canary, seconds
        self._restarts_before = restarts_before
        self._on_bad = on_bad
        self._canary_counter, self._stable_counter = Counter(), Counter()
        self._pairs = LatencyPairs(rollout.policy.gates, rollout.slow_seconds)
        self._bad_keys = Keys()
        self._unready_since: float | None = None
        self.copier = Copier(self, rollout.policy.shadow) if self.weight == 0 else None

    @property
    def slow_seconds(self) -> float | None:
        """From where on an answer is slow; None until the stable version has answered often enough."""
        return self._pairs.slow_seconds

    @cached_property
    def reads_alike(self) -> bool:
        """Whether both versions make the same rows of a request."""
        return self.stable.info.transform == self.canary.info.transform

    @property
    def weight(self) -> float:
        """Of the canary, in percent."""
        return self.rollout.policy.weights[self.rollout.step]

    @property
    def is_last_step(self) -> bool:
        """Whether what follows is promotion."""
        policy = self.rollout.policy
        return policy.kind == "blue_green" or policy.weights[self.rollout.step + 1] == 100

    @property
    def seconds(self) -> float:
        """Since this step began here."""
        return time.monotonic() - self.began

    def enter(self, drawn: RunningVersion, key: bytes | None = None) -> int | None:
        """A request was drawn for a version; the pair that it belongs to, if any: pass it to `count`."""
        return self._pairs.enter(drawn is self.canary, key)

    def count(
        self,
        drawn: RunningVersion,
        *,
        failed: bool,
        odd: bool,
        seconds: float,
        pair: int | None = None,
        key: bytes | None = None,
        replayed: bool = False,
        stood_in: bool = False,
    ) -> None:
        """One request that was drawn by weight has got its answer; ``stood_in``: by another version, its own being away.

        Requests with one key were not drawn one by one, so their bad events are one coin. Failing answers all count
        against the bound.
        """
        if self.is_over:
            return
        if not replayed:
            self.last_live = time.monotonic()
        is_canary = drawn is self.canary
        counter = self._canary_counter if is_canary else self._stable_counter
        counter.requests += 1
        counter.replayed += replayed
        counter.seconds += seconds
        is_repeated = bool(key) and (failed or odd) and not self._bad_keys.is_first(key or b"")
        counter.errors += failed
        counter.repeated += failed and is_repeated
        counter.odd += odd and not is_repeated
        counter.stand_ins += stood_in and not failed
        if failed or not stood_in:
            counter.consecutive_errors = counter.consecutive_errors + 1 if failed else 0
        is_slower = self._pairs.settle(is_canary, seconds, pair)
        if is_slower is not None:
            (self._canary_counter if is_slower else self._stable_counter).slow += 1
        if is_canary and not stood_in:
            self.latencies.append(seconds)
        if is_slower or (is_canary and (failed or odd)):
            self._on_bad(self)

    def count_copy(self, *, failed: bool, differs: bool, seconds: float, stable_seconds: float, replayed: bool) -> None:
        """The canary has answered, to nobody, what the stable version answered before."""
        if self.is_over:
            return
        counter = self._canary_counter
        counter.requests += 1
        counter.replayed += replayed
        counter.seconds += seconds
        counter.errors += failed
        counter.differing += differs
        counter.consecutive_errors = counter.consecutive_errors + 1 if failed else 0
        self.latencies.append(seconds)
        is_slower = self._pairs.match(stable_seconds, seconds)
        if is_slower is not None:
            (counter if is_slower else self._stable_counter).slow += 1
        if is_slower or failed or differs:
            self._on_bad(self)

    def own_counts(self) -> StepCounts:
        """Of this step, by this router."""
        return StepCounts(
            weight=self.weight, canary=self._canary_counter.frozen(), stable=self._stable_counter.frozen()
        )

    def step_counts(self) -> StepCounts:
        """Of this step, by all routers."""
        return merged([self.own_counts(), *self.others])[0]

    def counts(self) -> list[StepCounts]:
        """Of all steps, by all routers."""
        return merged([*self.rollout.counts, self.step_counts()])

    def judgement(self) -> Judgement:
        policy = self.rollout.policy
        return judge(self.counts(), policy.gates, len(policy.weights))

    def hard_reasons(self) -> Sequence[str]:
        """Why the canary goes back at once, without statistics."""
        gates, canary = self.rollout.policy.gates, self._canary_counter
        reasons = []
        if (crashes := self.canary.num_restarts - self._restarts_before) >= gates.max_crashes:
            reasons.append(f"the canary's worker died {crashes} times")
        if (seconds := self._unready_seconds()) >= gates.max_unready_seconds:
            reasons.append(f"the canary has had no living worker for {seconds:.0f} s")
        row = canary.consecutive_errors
        if row >= gates.max_consecutive_errors and self._stable_counter.consecutive_errors < row:
            reasons.append(f"the last {row} answers of the canary failed, while the stable version answers")
        return reasons

    def _unready_seconds(self) -> float:
        """How long the canary has had no living worker, as far as was looked."""
        if self.canary.is_available:
            self._unready_since = None
            return 0.0
        now = time.monotonic()
        self._unready_since = self._unready_since or now
        return now - self._unready_since

    def waits_for(self) -> str:
        """What this step still lacks, as a sentence; empty: it has all it needs."""
        policy = self.rollout.policy
        if lacks := self._lacks():
            return lacks
        at_least = policy.bake_seconds if policy.kind == "blue_green" else policy.min_seconds
        if self.seconds < at_least:
            return f"the step has lasted {self.seconds:.1f} of {at_least:g} s"
        said = self.judgement()
        limit = policy.gates.max_disagreement
        if self.copier and limit is not None and said.upper_disagreement > limit:
            return f"the canary is shown to disagree in fewer than {said.upper_disagreement:.2%}, wanted {limit:.2%}"
        if self.is_last_step and not said.may_promote:
            bound = policy.gates.max_error_rate
            return f"the canary's failing answers are shown to be below {said.upper_error_rate:.2%}, wanted {bound:.2%}"
        return APPROVAL if self.awaits_approval else ""

    def _lacks(self) -> str:
        """A worker, or requests; empty: neither."""
        policy, canary = self.rollout.policy, self.step_counts().canary
        if not self.canary.is_available:
            return "the canary has no living worker; others answer for it"
        if self.copier and canary.requests < policy.shadow.min_requests:
            said = f"the canary has answered {canary.requests} of {policy.shadow.min_requests} copied requests"
            return (
                said
                if self.reads_alike
                else f"{said}; it reads requests in a way of its own, so only live ones are copied"
            )
        if not self.copier and canary.own < policy.min_requests:
            return f"the canary has {canary.own} of {policy.min_requests} requests of its step"
        return ""

    @property
    def awaits_approval(self) -> bool:
        """Whether a person must agree before the canary goes on, and has not yet."""
        return self.is_last_step and self.rollout.policy.approval and not self.rollout.approved_by

    @property
    def keeps_bound(self) -> bool:
        """Whether what was measured, however little, lies within the bound."""
        bound, canary = self.rollout.policy.gates.max_error_rate, total(self.counts()).canary
        return bound is None or canary.errors <= bound * canary.own

    def notes(self) -> list[str]:
        """What the evidence must be read with."""
        return [*self._replay_notes(), *self._shadow_notes(), *self._latency_notes()]

    def too_slow_reasons(self) -> list[str]:
        """Whether the canary is slower here than its owner allows, against what compression measured; read at a step's end."""
        bound, factor = self.rollout.policy.gates.max_latency_factor, self._latency_factor()
        if bound is None or factor is None or factor <= bound:
            return []
        return [f"{note}, allowed is {bound:g}" for note in self._latency_notes()]

    def _latency_factor(self) -> float | None:
        measured = self.canary.measured_seconds
        return median(self.latencies) / measured if measured and self.latencies else None

    def _latency_notes(self) -> list[str]:
        factor, measured = self._latency_factor(), self.canary.measured_seconds
        if factor is None or measured is None:
            return []
        here = f"{1000 * median(self.latencies):.2f} ms"
        return [
            f"half of the canary's answers took at most {here}, {factor:.3g} times the {1000 * measured:.3g} ms of its compression"
        ]

    def _shadow_notes(self) -> list[str]:
        copies = total(one for one in self.counts() if one.weight == 0).canary
        if not copies.requests:
            return []
        share = (
            f"{copies.differing:,} of {copies.requests:,} copied requests ({copies.differing / copies.requests:.2%})"
        )
        return [f"{share} were answered otherwise than by the stable version"]

    def _replay_notes(self) -> list[str]:
        both = total(self.counts())
        replayed, requests = (
            getattr(both.canary, name) + getattr(both.stable, name) for name in ("replayed", "requests")
        )
        if not replayed:
            return []
        share = "all" if replayed == requests else f"{replayed:,} of {requests:,}"
        return [f"{share} requests were held-out rows replayed by the endpoint: that proves stability, not quality"]
