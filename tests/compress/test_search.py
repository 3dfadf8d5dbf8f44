"""The search alone: what it asks, what it drops, who wins. Nothing is built."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from modelyard.compress import (
    Budget,
    CompressConfig,
    Distil,
    DropLimit,
    HalfWeights,
    LatencyLimit,
    LowRank,
    PruneUnits,
    Recovery,
    SearchConfig,
    StaticInt8,
)
from modelyard.compress.outcomes import Built, Fell, Latency, Measured, Outcome, Recipe
from modelyard.compress.quality import Drop
from modelyard.compress.search import Search, conduct
from modelyard.errors import ConversionFailed
from tests.workbench import PROPERTY

FORMS = [StaticInt8(), HalfWeights()]
NETWORKS = [PruneUnits(recovery=Recovery()), LowRank(energy=0.9)]
BRANCHED = SearchConfig(forms=FORMS, networks=NETWORKS)


def built(size: int = 100, drop: float = 0.0, parameters: int = 1000) -> Built:
    accuracy = Drop(reference=0.9, value=0.9 - drop, drop=drop, bound=drop + 0.001)
    return Built(size_bytes=size, parameters=parameters, macs=parameters, drops={"accuracy": accuracy})


def measured(ratio: float, noise: float = 0.0, p99_ms: float = 2.0) -> Measured:
    return Measured(latency={1: Latency(p50_ms=ratio, p99_ms=p99_ms, ratio=ratio, noise=noise)})


def run(config: SearchConfig, made: dict[str, Outcome], times: dict[str, Outcome]) -> tuple[Search, list[list[str]]]:
    """A search over outcomes that are known beforehand, and what it asked to be built, in that order."""
    search, asked = Search(config, "accuracy"), []

    def build(recipes: list[Recipe]) -> dict[str, Outcome]:
        asked.append([recipe.name for recipe in recipes])
        return {recipe.name: made.get(recipe.name, built()) for recipe in recipes}

    def measure(recipes: list[Recipe]) -> dict[str, Outcome]:
        return {recipe.name: times.get(recipe.name, measured(1.0)) for recipe in recipes}

    conduct(search, build, measure)
    return search, asked


def outcomes(search: Search) -> dict[str, str]:
    return {one.name: one.outcome for one in search.decide().standings}


def reasons(search: Search) -> dict[str, str]:
    return {one.name: one.reason for one in search.decide().standings}


def test_cheap_ones_come_first():
    """The float form, forms of the trained network, networks without training, with training, forms of those."""
    smaller = dict.fromkeys(["low-rank-e0.9", "units-0.5"], built(50, parameters=500))
    _, asked = run(BRANCHED, smaller, {})
    assert asked == [
        ["float"],
        ["int8", "fp16-weights"],
        ["low-rank-e0.9"],
        ["units-0.5"],
        ["low-rank-e0.9-int8", "low-rank-e0.9-fp16-weights", "units-0.5-int8", "units-0.5-fp16-weights"],
    ]


@pytest.mark.parametrize(
    ("trunk", "reason"),
    [
        (built(50, drop=0.2, parameters=500), "outside the budget as it is: accuracy falls by 0.2"),
        (built(100), "no fewer parameters"),
        (Fell(reason="it crashed"), "fell: it crashed"),
    ],
)
def test_branches_without_hope_are_dropped(trunk: Outcome, reason: str):
    """Forms of a network that is bad, no smaller, or was not made are never built, and it is said why."""
    search, asked = run(SearchConfig(forms=FORMS, networks=[LowRank(energy=0.9)]), {"low-rank-e0.9": trunk}, {})
    assert asked[-1] == ["low-rank-e0.9"]
    assert outcomes(search)["low-rank-e0.9-int8"] == "dropped"
    assert reason in reasons(search)["low-rank-e0.9-int8"]


@pytest.mark.parametrize(
    ("budget", "problem"),
    [
        (Budget(max_drop={"accuracy": DropLimit(absolute=0.02)}), "accuracy falls by 0.03 and may fall by 0.031"),
        (Budget(max_drop={"accuracy": DropLimit(relative=0.01)}), "allowed is 0.009"),
        (Budget(max_drop={"recall": DropLimit(absolute=1)}), "recall is no metric of this task"),
        (Budget(max_drop={"accuracy": DropLimit(absolute=1)}, max_size_bytes=40), "50 bytes, allowed are 40"),
        (Budget(max_drop={"accuracy": DropLimit(absolute=1)}, max_size_fraction=0.4), "0.500 of the float size"),
        (
            Budget(max_drop={"accuracy": DropLimit(absolute=1)}, latency=[LatencyLimit(batch=1, p99_ms=0.5)]),
            "p99 at batch 1 is 2 ms, allowed are 0.5",
        ),
    ],
)
def test_each_bound_is_held(budget: Budget, problem: str):
    """A candidate outside any bound loses with the number; where nobody is inside, the float model goes on."""
    config = SearchConfig(forms=[StaticInt8()], budget=budget, prefer="size")
    search, _ = run(config, {"int8": built(50, drop=0.03)}, {"int8": measured(0.5)})
    decision = search.decide()
    assert decision.winner == "float"
    assert problem in reasons(search)["int8"]
    assert "the float model goes on" in decision.why or "it goes on as it is" in decision.why


def test_the_bound_counts_and_not_the_point():
    """A drop inside the limit whose confidence bound is beyond it does not pass."""
    config = SearchConfig(
        forms=[StaticInt8()], budget=Budget(max_drop={"accuracy": DropLimit(absolute=0.0305)}), prefer="size"
    )
    search, _ = run(config, {"int8": built(50, drop=0.03)}, {})
    assert outcomes(search)["int8"] == "outside"


@pytest.mark.parametrize(
    ("prefer", "noise", "winner"),
    [("speed", 0.0, "fp16-weights"), ("speed", 0.3, "int8"), ("size", 0.0, "int8")],
)
def test_the_winner_is_what_was_wished_for(prefer: str, noise: float, winner: str):
    """The fastest; within the noise of measuring, the smaller one; or the smallest."""
    config = SearchConfig.model_validate({"forms": FORMS, "prefer": prefer})
    sizes = {"int8": built(30), "fp16-weights": built(50)}
    times = {"int8": measured(0.6, noise), "fp16-weights": measured(0.5, noise)}
    search, _ = run(config, sizes, times)
    assert search.decide().winner == winner
    assert not reasons(search)[winner]
    assert all(reason for name, reason in reasons(search).items() if name != winner)


@pytest.mark.parametrize(("ratio", "winner"), [(0.524, "int8"), (0.5275, "int8"), (0.54, "fp16-weights")])
def test_who_is_not_shown_to_be_slower_is_as_fast(ratio: float, winner: str):
    """The same candidates, measured again and again around the end of a tie, do not take turns in winning."""
    times = {"int8": measured(ratio, 0.006), "fp16-weights": measured(0.5, 0.006)}
    search, _ = run(
        SearchConfig(forms=FORMS, tie_fraction=0.05), {"int8": built(30), "fp16-weights": built(50)}, dict(times)
    )
    assert search.decide().winner == winner


def test_optimised_and_compressed_are_told_apart():
    """Fewer or smaller parameters are compression; the same ones, faster, are not."""
    search, _ = run(
        SearchConfig(forms=FORMS), {"int8": built(30)}, {"int8": measured(2), "fp16-weights": measured(0.5)}
    )
    gains = {one.name: one.gain for one in search.decide().standings}
    assert gains == {"float": "", "int8": "compressed", "fp16-weights": "optimised"}
    assert {one.name for one in search.decide().standings if one.on_front} == {"int8", "fp16-weights"}


def test_a_candidate_that_falls_takes_nobody_along():
    """Neither when it is built nor when it is measured."""
    times: dict[str, Outcome] = {"fp16-weights": Fell(reason="ended by SIGSEGV")}
    search, _ = run(SearchConfig(forms=FORMS, prefer="size"), {"int8": Fell(reason="no such operator")}, times)
    assert outcomes(search) == {"float": "winner", "int8": "fell", "fp16-weights": "fell"}
    assert reasons(search) == {"float": "", "int8": "no such operator", "fp16-weights": "ended by SIGSEGV"}


def test_without_a_float_form_there_is_nothing_to_serve():
    """The one candidate that must not fall."""
    with pytest.raises(ConversionFailed, match="the form 'float' cannot be made: no such operator"):
        run(SearchConfig(), {"float": Fell(reason="no such operator")}, {})


@PROPERTY
@given(seed=st.integers(0, 10**6))
def test_a_search_goes_on_where_its_results_end(seed: int):
    """Told the same outcomes in any order, another search asks the same next, and decides the same."""
    draw = random.Random(seed)
    made: dict[str, Outcome] = {
        name: built(draw.randint(10, 99), draw.choice([0, 0.005, 0.1]), draw.randint(1, 999)) if draw.random() < 0.8
        else Fell(reason="x")
        for name in Search(BRANCHED, "accuracy").recipes
        if name != "float"
    }  # fmt: skip
    first, told = Search(BRANCHED, "accuracy"), []
    while asked := first.ask():
        again = Search(BRANCHED, "accuracy")
        for name, outcome in draw.sample(told, len(told)):
            again.tell(name, outcome)
        assert again.ask() == asked
        for recipe in asked.recipes:
            outcome = made.get(recipe.name, built()) if asked.what == "build" else measured(draw.random())
            first.tell(recipe.name, outcome)
            # A measurement completes what was built: it cannot come before it.
            told.append((recipe.name, outcome))
    again = Search(BRANCHED, "accuracy")
    for name, outcome in draw.sample(told, len(told)):
        again.tell(name, outcome)
    assert again.ask() is None
    assert again.decide() == first.decide()


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"search": {}, "default_form": "int8"}, "leave out default_form"),
        ({"search": {"forms": [{"technique": "static_int8"}] * 2}}, "two techniques have one name"),
        ({"search": {"budget": {"latency": [{"batch": 7, "p50_ms": 1}]}}}, "batch 7 is not in measure.batches"),
        ({"search": {"budget": {"max_drop": {"accuracy": {}}}}}, "say absolute or relative"),
        ({"search": {"networks": [{"technique": "low_rank"}]}}, "either energy or parameter_fraction"),
        ({"search": {"forms": [{"technique": "float32", "engine": "onnxruntime", "precision": "bf16"}]}}, "no bf16"),
        ({"search": {"networks": [{"technique": "alchemy"}]}}, "alchemy"),
    ],
)
def test_contradictory_searches_are_refused(wrong: dict, sentence: str):
    """Before anything starts, by name."""
    with pytest.raises(ValidationError, match=sentence):
        CompressConfig.model_validate(wrong)


def test_students_are_always_trained():
    """A network that no training made would answer at random."""
    assert Distil().needs_training
    assert not LowRank(energy=0.5).needs_training
