"""Verdict rules and sequential tests: pure arithmetic over numbers somebody measured.

checks.py      a rule, a number, a sentence; evaluation's verdict is made of them
sequential.py  tests that stay valid however often they are looked at
policy.py      what a rollout's owner decides: steps, gates, bounds on waits
trial.py       from the counts of a canary and its stable version to a decision

Evaluation, rollout and the endpoint share it.
"""

from modelyard.gates.checks import Check, Verdict, allowed_drop, ceiling, floor
from modelyard.gates.policy import GateSettings, Replay, RolloutPolicy, Shadow
from modelyard.gates.sequential import Flips, coin_flip_evidence, rate_evidence, upper_bound
from modelyard.gates.trial import Judgement, StepCounts, VersionCounts, judge, merged, total

__all__ = [
    "Check",
    "Flips",
    "GateSettings",
    "Judgement",
    "Replay",
    "RolloutPolicy",
    "Shadow",
    "StepCounts",
    "Verdict",
    "VersionCounts",
    "allowed_drop",
    "ceiling",
    "coin_flip_evidence",
    "floor",
    "judge",
    "merged",
    "rate_evidence",
    "total",
    "upper_bound",
]
