"""Each bound of the config: at it, just inside, just outside, and where its number is missing."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from modelyard.errors import ConfigError
from modelyard.evaluate import EvaluateConfig
from modelyard.evaluate.checks import judge
from modelyard.evaluate.config import MIN_SLICE_ROWS
from modelyard.evaluate.evidence import Cost, Evidence, SliceScore
from modelyard.evaluate.intervals import Comparison, Interval

LENIENT = {"floor": 0.0, "allowed_drop_against_float": 1.0, "allowed_drop_against_champion": 1.0}


def judged(accuracy: float, **headline: float) -> Any:
    """What `judge` asks of a judged model: a score, other scores, and how many rows were numbers."""
    return SimpleNamespace(
        value=lambda _: accuracy,
        finite_fraction=1.0,
        headline=lambda: {"accuracy": accuracy, **headline},
        score_names=["accuracy", "macro_f1", "loss", "roc_auc", "calibration_error"],
    )


def evidence(candidate: float = 0.9, reference: float = 0.9, champion: float = 0.9, **more: Any) -> Evidence:
    headline = more.pop("headline", {})
    models = {
        "candidate": judged(candidate, **headline),
        "float": judged(reference),
        "champion": judged(champion, calibration_error=0.25),
    }
    found = Evidence(judged=models, golden=None)
    for name, value in more.items():
        setattr(found, name, value)
    return found


def slice_score(value: float, rows: int = MIN_SLICE_ROWS, champion: float | None = None) -> SliceScore:
    score = Interval(value=value, low=value - 0.1, high=value + 0.1, confidence=0.95)
    return SliceScore(name=f"slice at {value}", rows=rows, score=score, champion=champion)


def likely(probability: float) -> Comparison:
    zero = Interval(value=0, low=0, high=0, confidence=0.95)
    return Comparison(
        difference=zero, probability_better=probability, only_candidate_right=0, only_champion_right=0, p_value=1
    )


def named(name: str, value: float) -> Evidence:
    return evidence(headline={name: value} if math.isfinite(value) else {})


def costs(**own: float) -> Evidence:
    return evidence(costs={"candidate": Cost(**own), "champion": Cost(size_bytes=1000, latency_ms=2.0)})


def disturbed(value: float) -> dict[str, dict[str, float]]:
    return {"undisturbed": {"candidate": 0.9}, "noise": {"candidate": value}, "missing": {"candidate": 0.9}}


BOUNDS = [
    ({"floor": 0.9}, lambda value: evidence(candidate=value), 0.9, 1),
    ({"allowed_drop_against_float": 0.25}, lambda value: evidence(candidate=value, reference=1.0), 0.75, 1),
    ({"allowed_drop_against_champion": 0.25}, lambda value: evidence(candidate=value, champion=1.0), 0.75, 1),
    ({"probability_better": 0.95}, lambda value: evidence(comparison=likely(value)), 0.95, 1),
    (
        {"slices": ("x",), "slice_floor": 0.8},
        lambda value: evidence(slices=[slice_score(0.99), slice_score(value)]),
        0.8,
        1,
    ),
    (
        {"slices": ("x",), "allowed_drop_in_slices": 0.25},
        lambda value: evidence(slices=[slice_score(0.2, champion=0.2), slice_score(value, champion=1.0)]),
        0.75,
        1,
    ),
    ({"allowed_drop_when_disturbed": 0.4}, lambda value: evidence(disturbed=disturbed(value)), 0.5, 1),
    ({"allowed_drop_under_attack": 0.4}, lambda value: evidence(attacked=disturbed(value)), 0.5, 1),
    (
        {"allowed_drop_under_attack_against_champion": 0.25},
        lambda value: evidence(attacked={"fgsm": {"candidate": value, "champion": 0.75}}),
        0.5,
        1,
    ),
    (
        {"max_calibration_error": 0.05},
        lambda value: evidence(headline={"calibration_error": value} if math.isfinite(value) else {}),
        0.05,
        -1,
    ),
    ({"floors": {"roc_auc": 0.8}}, lambda value: named("roc_auc", value), 0.8, 1),
    ({"ceilings": {"loss": 0.8}}, lambda value: named("loss", value), 0.8, -1),
    (
        {"allowed_drop_when_disturbed_against_champion": 0.25},
        lambda value: evidence(disturbed={"noise": {"candidate": value, "champion": 0.75}}),
        0.5,
        1,
    ),
    (
        {"allowed_calibration_rise_against_champion": 0.25},
        lambda value: named("calibration_error", value),
        0.5,
        -1,
    ),
    ({"max_size_bytes": 1000}, lambda value: costs(size_bytes=value), 1000, -1),
    ({"max_size_ratio_to_champion": 0.5}, lambda value: costs(size_bytes=value), 500, -1),
    ({"max_latency_ms": 2.0}, lambda value: costs(latency_ms=value), 2.0, -1),
    ({"max_latency_ratio_to_champion": 1.5}, lambda value: costs(latency_ms=value), 3.0, -1),
]


@pytest.mark.parametrize(
    ("bound", "make", "limit", "towards"), BOUNDS, ids=[next(reversed(case[0])) for case in BOUNDS]
)
def test_a_bound_holds_to_the_last_digit(bound: dict[str, Any], make: Any, limit: float, towards: int):
    """On the limit and just inside it passes; just outside, or where the number could not be computed, it refuses."""
    config = EvaluateConfig(**{**LENIENT, **bound})
    inside, outside = limit + towards * 1e-9, limit - towards * 1e-9
    assert judge("x", make(limit), config).passed
    assert judge("x", make(inside), config).passed
    assert not judge("x", make(outside), config).passed
    assert not judge("x", make(math.nan), config).passed


def test_a_champion_that_could_not_be_attacked_alike_refuses():
    """Its score under that attack is missing, so nobody knows how far the candidate lies below."""
    config = EvaluateConfig(**LENIENT, allowed_drop_under_attack_against_champion=1.0)
    assert not judge("x", evidence(attacked={"fgsm": {"candidate": 0.9}}), config).passed
    assert not judge("x", evidence(), config).passed


def test_a_bound_against_nobody_asks_nothing():
    """The first model of its name has no champion to be smaller, faster or better calibrated than."""
    config = EvaluateConfig(
        floor=0.0,
        max_size_ratio_to_champion=0.1,
        max_latency_ratio_to_champion=0.1,
        allowed_calibration_rise_against_champion=0.0,
        allowed_drop_when_disturbed_against_champion=0.0,
    )
    alone = Evidence(judged={"candidate": judged(0.9), "float": judged(0.9)}, golden=None)
    assert judge("x", alone, config).passed


def test_a_bound_on_what_the_task_lacks_is_refused():
    """By name, with what there is."""
    config = EvaluateConfig(**LENIENT, ceilings={"rmse": 3.0})
    with pytest.raises(ConfigError, match=r"evaluate\.ceilings: 'rmse' is not known.*There are accuracy, macro_f1"):
        judge("x", evidence(), config)


def test_small_slices_decide_nothing():
    """A slice of 29 rows neither refuses nor counts as proof: where all are small the bound refuses."""
    config = EvaluateConfig(**LENIENT, slices=("x",), slice_floor=0.8)
    small = slice_score(0.1, rows=MIN_SLICE_ROWS - 1)
    assert judge("x", evidence(slices=[small, slice_score(0.9)]), config).passed
    alone = judge("x", evidence(slices=[small]), config)
    assert not alone.passed
    assert "no slice has rows enough" in alone.reasons[0]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"override_by": "Ada"}, "override_reason"),
        ({"override_reason": "because"}, "override_by"),
        ({"slice_floor": 0.5}, "slices"),
        ({"floors": {"rmse": 3.0}}, "rmse has no place among floors, less is better there"),
        ({"ceilings": {"roc_auc": 0.9}}, "roc_auc has no place among ceilings, more is better there"),
        ({"floors": {"roc_acu": 0.9}}, "did you mean 'roc_auc'"),
    ],
)
def test_half_a_wish_is_refused(fields: dict[str, Any], words: str):
    """An override without a person or a reason, a bound on slices without columns, a bound that points the wrong way or names
    no score."""
    with pytest.raises(ValidationError, match=words):
        EvaluateConfig(**fields)
