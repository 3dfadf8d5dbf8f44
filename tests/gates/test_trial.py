"""What the gates decide about canaries whose true rates are known, and which policies are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from modelyard.gates import GateSettings, Judgement, RolloutPolicy, StepCounts, VersionCounts, judge, merged
from tests.gates.simulation import Rates, median_requests, tally

USUAL = Rates(errors=0.002, slow=0.1)
# A canary that is worse, and how many of its own requests the median rollout may take to see it.
WORSE = {
    "ten times the errors": (Rates(errors=0.02), 300),
    "an outage": (Rates(errors=1.0), 5),
    # 1.5 times the latency: with a spread of 0.3 (lognormal), 30 % instead of 3 % are above 1.2 times the 90 % quantile.
    "half as slow again": (Rates(slow=0.3), 100),
    "inputs refused": (Rates(odd=0.1), 100),
}


@pytest.mark.parametrize("name", WORSE)
def test_a_worse_canary_is_seen_soon(name: str):
    """Half of the simulated rollouts go back within the stated number of canary requests."""
    canary, limit = WORSE[name]
    stable = Rates(slow=0.03) if canary.slow == 0.3 else USUAL
    assert median_requests(canary, stable, 21, seed=1) <= limit


def test_an_equal_canary_is_promoted():
    """No false alarm in these, though the gates look after every bad event."""
    assert tally(USUAL, USUAL, 15, seed=2) == {"promoted": 15}


def test_a_canary_above_its_bound_is_never_promoted():
    """One that fails as often as the stable version, and more often than the bound allows, waits or goes back."""
    assert tally(Rates(errors=0.015), Rates(errors=0.015), 8, seed=3, patience=2000)["promoted"] == 0


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_error_rates_of_the_gates_themselves():
    """False rollbacks in at most 1 % of 2,000 rollouts; of 200 above their bound none is promoted; medians of 301."""
    assert tally(USUAL, USUAL, 2000, seed=4)["rolled_back"] <= 20
    assert tally(Rates(errors=0.012), Rates(errors=0.012), 200, seed=5)["promoted"] == 0
    assert tally(Rates(errors=0.02), Rates(errors=0.02), 200, seed=6, patience=6000)["promoted"] == 0
    for canary, limit in WORSE.values():
        stable = Rates(slow=0.03) if canary.slow == 0.3 else USUAL
        assert median_requests(canary, stable, 301, seed=7) <= limit


def counted(weight: float, errors: int, requests: int) -> StepCounts:
    return StepCounts(weight=weight, canary=VersionCounts(requests=requests, errors=errors))


def test_a_judgement_says_each_gate_with_its_limit():
    """A failed gate's sentence has the counts; a gate that is off is not in the table."""
    said = judge([counted(1, errors=3, requests=5)], GateSettings(latency=False), num_steps=4)
    assert [check.name for check in said.checks] == ["errors", "quality", "bound"]
    assert not said.may_promote
    assert "3 in 5 requests of the canary" in said.reasons[0]


def test_good_steps_do_not_hide_a_bad_one():
    """The bound is tested at each step by itself: failures after a long good step are seen like those at the start."""
    good = counted(50, errors=0, requests=5000)
    assert not judge([good], GateSettings(errors=False), 4).reasons
    assert judge([good, counted(60, errors=5, requests=6)], GateSettings(errors=False), 4).reasons


def test_disagreement_of_copies_is_bounded():
    """Copies are judged by how many were answered otherwise; requests that the canary answered are no copies."""
    gates = GateSettings(max_disagreement=0.05)

    def said(differing: int, weight: float = 0) -> Judgement:
        counts = VersionCounts(requests=200, differing=differing)
        return judge([StepCounts(weight=weight, canary=counts)], gates, 5)

    assert said(0).reasons == []
    assert said(0).upper_disagreement < 0.05
    assert said(10).upper_disagreement > 0.05
    assert "disagreement: 40 of 200 copied requests" in said(40).reasons[0]
    assert said(40, weight=1).reasons == []


def test_counts_merge_by_weight():
    """Two routers at 1 % and one already at 10 % are two groups."""
    all_counts = merged([counted(1, 1, 10), counted(10, 0, 5), counted(1, 2, 20)])
    assert all_counts == [counted(1, 3, 30), counted(10, 0, 5)]


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ({"steps": (1, 10, 50)}, "end with 100"),
        ({"steps": ()}, "end with 100"),
        ({"steps": (10, 10, 100)}, "larger than the one before"),
        ({"steps": (0, 100)}, "above 0"),
        (
            {"gates": {"errors": False, "latency": False, "quality": False, "max_error_rate": None}},
            "every gate is off",
        ),
        ({"steps": (100,)}, "leaves no stable version to be compared with"),
        ({"kind": "blue_green", "gates": {"max_error_rate": None}}, "nothing is compared"),
        ({"kind": "yolo"}, "kind"),
        ({"kind": "blue_green", "shadow": {"share": 0.1}}, "first of several steps"),
        ({"shadow": {"share": 10}}, "share"),
        ({"gates": {"max_disagreement": 0.05}}, "nothing is copied"),
        ({"gates": {"alpha": 0}}, "alpha"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_policies_that_make_no_sense_are_refused(policy: dict, words: str):
    """Weights that lead nowhere, and a policy with no gates, by name."""
    with pytest.raises(ValidationError, match=words):
        RolloutPolicy.model_validate(policy)


def test_without_gates_a_rollout_must_say_that_it_means_it():
    """`all_at_once` is the policy without gates."""
    off = GateSettings(errors=False, latency=False, quality=False, max_error_rate=None)
    assert RolloutPolicy(kind="all_at_once", gates=off).weights == (100.0,)


def test_a_shadow_is_the_step_before_the_first():
    """Its weight is 0."""
    assert RolloutPolicy.model_validate({"shadow": {"share": 0.1}}).weights == (0, 1, 10, 50, 100)


def test_a_shadow_may_be_followed_by_everything():
    """Copies are compared, so one step is enough; all at once is judged by what needs no comparison."""
    assert RolloutPolicy.model_validate({"steps": (100,), "shadow": {"share": 0.1}}).weights == (0, 100)
    assert RolloutPolicy.model_validate({"kind": "blue_green"}).weights == (100,)


def test_the_documented_policy_is_the_default():
    """What `docs/rollout.md` shows as defaults is what a preset gets that says nothing."""
    block = (Path(__file__).parents[2] / "docs" / "rollout.md").read_text().split("```")[3]
    shown = yaml.safe_load(block)["rollout"]["policy"]
    assert RolloutPolicy.model_validate(shown) == RolloutPolicy()
