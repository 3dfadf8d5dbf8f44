"""What the owner of a rollout decides, carried by the revision: the endpoint acts on it alone."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from pydantic import Field, model_validator

from modelyard.artifacts import Frozen


class GateSettings(Frozen):
    """When a canary goes back, and what it takes to be promoted.

    Attributes:
        alpha: probability that a canary as good as the stable version is rolled back, over the whole rollout and
            all statistical gates together.
        errors: hold how often answers fail (5xx, 429, a worker's death) against the stable version.
        latency: the same for answers slower than a threshold that is fixed from the stable version's first answers,
            on pairs of requests that came at the same time.
        quality: the same for inputs refused by the model and outputs that are not finite.
        max_error_rate: bound on the canary's rate of failing answers: shown to be above it, it goes back; promoted it
            is only when shown to be below it. None: no bound.
        promotion_alpha: probability that a canary above ``max_error_rate`` is promoted.
        latency_quantile: share of the stable version's answers below the threshold, before the slack.
        latency_slack: factor on that quantile.
        latency_floor_seconds: the threshold is never lower: faster is fast enough.
        tolerated_slow_ratio: how many times as often as the stable version the canary may be slow: a worker that is
            seldom asked is a little slower, and is not worse for it.
        max_crashes: so many deaths of the canary's workers in a rollout end it.
        max_unready_seconds: the canary without a living worker for so long, while others answer for it, ends the rollout.
        max_consecutive_errors: so many failing answers of the canary in a row, while the stable version answers.
        max_latency_factor: bound on the median of the canary's latest 1,000 latencies (in the endpoint: queue and worker
            included) over the model's own, measured for one row at compression; read at the end of each step. None: it
            is reported, and no gate.
        max_disagreement: bound on the share of copied requests that the canary answers otherwise than the stable version,
            while it is in the shadow: shown to be above it, it goes back; it leaves the shadow only when shown to be below
            it. None: it is reported, and no gate.
    """

    alpha: float = Field(0.01, gt=0, le=0.2)
    errors: bool = True
    latency: bool = True
    quality: bool = True
    max_error_rate: float | None = Field(0.01, gt=0, lt=1)
    promotion_alpha: float = Field(0.01, gt=0, le=0.2)
    latency_quantile: float = Field(0.9, gt=0, lt=1)
    latency_slack: float = Field(1.2, ge=1)
    latency_floor_seconds: float = Field(0.01, ge=0)
    tolerated_slow_ratio: float = Field(1.25, ge=1)
    max_crashes: int = Field(3, ge=1)
    max_unready_seconds: float = Field(20, gt=0)
    max_consecutive_errors: int = Field(5, ge=2)
    max_latency_factor: float | None = Field(None, gt=0)
    max_disagreement: float | None = Field(None, gt=0, lt=1)

    @property
    def are_any_on(self) -> bool:
        return self.errors or self.latency or self.quality or self.max_error_rate is not None


class Replay(Frozen):
    """What to do while nobody asks: the verdict's held-out rows are asked instead, at the weights of the step.

    Rows that repeat prove that a version is stable and quick, not that it is right; the evidence counts them apart.

    Attributes:
        enabled: whether to replay at all.
        after_seconds: how long a step waits for real requests first.
        max_requests: of the canary, over the whole rollout.
        max_seconds: over the whole rollout.
    """

    enabled: bool = True
    after_seconds: float = Field(0.3, ge=0)
    max_requests: int = Field(2000, ge=0)
    max_seconds: float = Field(10.0, ge=0)


class Shadow(Frozen):
    """A step before all others, in which the canary answers nobody: it is asked copies of live requests, and its answers
    are held against the stable version's.

    Attributes:
        share: of the requests, copied; 0: there is no such step. Copies are the first to be dropped under load.
        min_requests: copies answered by the canary, before its first weight.
        tolerance: numbers of a regression agree when they differ by at most this, relative to the larger of 1 and the
            stable version's. Labels must be equal.
    """

    share: float = Field(0.0, ge=0, le=1)
    min_requests: int = Field(200, ge=1)
    tolerance: float = Field(0.05, ge=0)


class RolloutPolicy(Frozen):
    """How a new version takes over from the one that serves.

    Attributes:
        kind: ``steps``: a growing share of the requests, judged at each step. ``blue_green``: all requests at once,
            then watched for ``bake_seconds`` with the old version warm. ``all_at_once``: all requests, unwatched.
        steps: the canary's weights in percent, growing, the last one 100.
        min_requests: of the canary, at each step below 100.
        min_seconds: at each step below 100.
        max_seconds: at each step below 100, waiting for ``min_requests``; then ``when_thin`` decides.
        when_thin: with too few requests: ``hold`` the step and wait for more, ``promote``, or ``roll_back``.
        load_seconds: from the start of a rollout until the endpoint has taken the canary in; then it is given up.
        bake_seconds: see ``kind``.
        approval: whether a person must agree before the canary is promoted; until then it stays at its last step.
        shadow: a step before the first of ``steps``, in which nobody gets the canary's answers.
    """

    kind: Literal["steps", "blue_green", "all_at_once"] = "steps"
    steps: tuple[float, ...] = (1, 10, 50, 100)
    min_requests: int = Field(200, ge=0)
    min_seconds: float = Field(0.5, ge=0)
    max_seconds: float = Field(3600, gt=0)
    when_thin: Literal["hold", "promote", "roll_back"] = "hold"
    load_seconds: float = Field(60, gt=0)
    bake_seconds: float = Field(10, gt=0)
    approval: bool = False
    gates: GateSettings = GateSettings()
    replay: Replay = Replay()
    shadow: Shadow = Shadow()

    @model_validator(mode="after")
    def _makes_sense(self) -> RolloutPolicy:
        if not self.steps or self.steps[0] <= 0 or self.steps[-1] != 100:
            raise ValueError(f"steps are percentages above 0 that end with 100, not {list(self.steps)}")
        if any(first >= second for first, second in pairwise(self.steps)):
            raise ValueError(f"each of the steps must be larger than the one before: {list(self.steps)}")
        if self.kind != "all_at_once" and not self.gates.are_any_on:
            raise ValueError("every gate is off, so nothing would be judged; say kind: all_at_once to mean that")
        if self.kind == "steps" and len(self.weights) == 1:
            raise ValueError(
                "steps: [100] leaves no stable version to be compared with; say kind: blue_green for all requests at once"
                " and a watch over them, or kind: all_at_once"
            )
        if self.kind == "blue_green" and self.gates.max_error_rate is None and self.gates.max_latency_factor is None:
            raise ValueError(
                "kind: blue_green gives the canary all requests, so nothing is compared and only max_error_rate and"
                " max_latency_factor judge it; both are off. Say kind: all_at_once to mean that"
            )
        if self.shadow.share and self.kind != "steps":
            raise ValueError(f"a shadow is the first of several steps, and kind: {self.kind} has none")
        if self.gates.max_disagreement is not None and not self.shadow.share:
            raise ValueError("max_disagreement is judged on copied requests, and shadow.share is 0: nothing is copied")
        return self

    @property
    def weights(self) -> tuple[float, ...]:
        """The canary's weights, the final 100 included; 0 is the shadow."""
        if self.kind != "steps":
            return (100.0,)
        return (0.0, *self.steps) if self.shadow.share else self.steps
