"""What a study asks for, and what it makes of the answers."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest

from modelyard.errors import TrialPruned, TuningFailed
from modelyard.tune import Ask, Dimension, Study, Told, TuneConfig
from modelyard.tune.picture import study_png, table
from modelyard.tune.pruning import Judge, bar_of
from modelyard.tune.sampler import TpeSampler

RATE, WIDTH, NAME = "train.optimizer.learning_rate", "train.batch_size", "train.optimizer.name"
SPACE = {
    RATE: Dimension(low=1e-4, high=1e-1, log=True),
    WIDTH: Dimension(low=8, high=64, step=8),
    NAME: Dimension(choices=["adam", "sgd", "muon"]),
}
PRESET = {RATE: 0.003, WIDTH: 100, NAME: "adam"}  # the batch size lies outside of the space


def study_of(metric: str = "accuracy", **settings: object) -> Study:
    config = TuneConfig.model_validate({"space": SPACE, "startup": 4, **settings})
    return Study(config, metric, PRESET, TpeSampler(config, {WIDTH}, lower_is_better=metric == "loss"))


def score(asked: Ask) -> Told:
    """Best at a rate of 0.01 with sgd; muon breaks."""
    if asked.parameters[NAME] == "muon":
        return Told(outcome="failed", reason="NonFiniteLoss: the loss was lost")
    value = 0.9 - abs(asked.parameters[RATE] - 0.01) - 0.2 * (asked.parameters[NAME] == "adam")
    return Told(outcome="finished", value=value, values=[value - 0.1, value])


def asked_by(study: Study, number: int) -> list[Ask]:
    """The first trials, one after the other, each told before the next is asked for."""
    asks = []
    for _ in range(number):
        asked = study.ask()
        assert asked
        study.tell(asked.number, score(asked))
        asks.append(asked)
    return asks


def test_a_study_taken_up_asks_for_the_same_trials():
    """One seed, one series; and a study that is told of its trials in any order goes on with it as if never interrupted."""
    whole = asked_by(study_of(), 14)
    assert asked_by(study_of(), 14) == whole
    assert asked_by(study_of(seed=1), 3)[1:] != whole[1:3]
    again = study_of()
    for asked in whole[:9]:
        again.restore(asked)
    for asked in random.Random(0).sample(whole[:9], 9):
        again.tell(asked.number, score(asked))
    assert asked_by(again, 5) == whole[9:]


def test_trials_lie_in_the_space_and_learn():
    """The preset comes first; then whole steps, the whole range, and less and less of what fails or does badly. Which key
    mattered is known at the end, not after three trials."""
    study = study_of(trials=60)
    asks = asked_by(study, 40)
    importance = study.decide().importance
    assert max(importance, key=lambda key: importance[key]) == RATE
    few = study_of()
    asked_by(few, 3)
    assert few.decide().importance == {}
    assert asks[0].parameters == PRESET
    for asked in asks[1:]:
        assert 1e-4 <= asked.parameters[RATE] <= 1e-1
        assert asked.parameters[WIDTH] in range(8, 65, 8)
        assert isinstance(asked.parameters[WIDTH], int)
    names = [asked.parameters[NAME] for asked in asks]
    assert set(names[:12]) == {"adam", "sgd", "muon"}
    assert names[20:].count("sgd") > 14  # of 20; a third without what was told


def test_trials_under_way_are_not_asked_for_twice():
    """Several at a time differ, though nothing was told in between."""
    study = study_of(startup=2)
    asked_by(study, 6)
    under_way = [study.ask() for _ in range(3)]
    assert len({asked.parameters[RATE] for asked in under_way if asked}) == 3


def test_a_study_ends_by_count_or_time():
    """No trial beyond the bounds; what resumed trials took counts as well."""
    assert len(asked_by(study_of(trials=3), 3)) == 3
    study = study_of(trials=9, max_seconds=10)
    asked = study.ask()
    assert asked
    assert study.seconds_left == 10
    study.tell(0, score(asked).model_copy(update={"seconds": 11.0}))
    assert study.ask() is None


def told(*curves: Iterable[float], outcome: str = "finished") -> dict[int, Told]:
    values = [list(curve) for curve in curves]
    return {
        number: Told.model_validate({"outcome": outcome, "value": max(curve), "values": curve})
        for number, curve in enumerate(values)
    }


def test_the_bar_is_what_the_papers_say():
    """Median: of the finished trials' bests at the same validation. Halving: the top third of all that got there."""
    curves = [0.5, 0.6, 0.55], [0.4, 0.8], [0.1, 0.2, 0.9]
    config = TuneConfig(space=SPACE, startup=3)
    assert bar_of(config, told(*curves), lower_is_better=False) == {2: 0.6, 3: 0.8}
    assert bar_of(config, told(*curves), lower_is_better=True) == {2: 0.4, 3: 0.4}
    assert bar_of(config, told(*curves[:2]), lower_is_better=False) == {}
    halving = config.model_copy(update={"pruner": "halving"})
    assert bar_of(halving, told(*curves), lower_is_better=False) == {1: 0.5, 3: 0.9}
    six = told(*([value] for value in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)))
    assert bar_of(halving, six, lower_is_better=False) == {1: 0.5}  # two of seven
    assert bar_of(config.model_copy(update={"pruner": "none"}), six, lower_is_better=False) == {}


def test_a_judge_ends_who_is_behind():
    """By the best so far, in the metric's direction; a training that went back is judged by what it made again."""
    judge = Judge({2: 0.6}, lower_is_better=False)
    judge.hear(10, 0.7)
    judge.hear(20, 0.1)
    assert judge.values == [0.7, 0.1]
    behind = Judge({2: 0.6, 3: 0.65}, lower_is_better=False)
    behind.remember(10, 0.5)
    behind.hear(20, 0.6)
    behind.hear(20, 0.61)
    with pytest.raises(TrialPruned, match=r"0\.6100 after 3 validations is behind the bar of 0\.6500"):
        behind.hear(30, 0.2)
    with pytest.raises(TrialPruned, match="behind"):
        Judge({1: 0.2}, lower_is_better=True).hear(1, 0.3)
    moments = iter([0.0, 4.0, 6.0])
    late = Judge({}, lower_is_better=False, seconds=5, clock=lambda: next(moments))
    late.hear(1, 0.5)
    with pytest.raises(TrialPruned, match=r"tune\.max_seconds"):
        late.hear(2, 0.5)
    assert late.time_is_over


def test_the_best_wins_and_everybody_is_shown():
    """Equal metrics: the lower loss, then the earlier trial. The table begins with the best, the picture is a PNG."""
    study = study_of(trials=12)
    asked_by(study, 10)
    for loss in (0.2, 0.1):
        asked = study.ask()
        assert asked
        study.tell(asked.number, Told(outcome="finished", value=0.95, loss=loss, values=[0.95]))
    decision = study.decide()
    assert decision.winner == 11
    assert decision.why.startswith("accuracy 0.9500 in trial 11 of 12")
    rows = table(decision)
    assert [row["trial"] for row in rows[:2]] == [11, 10]
    assert {row["outcome"] for row in rows} >= {"winner", "loser", "failed"}
    assert "the loss was lost" in rows[-1]["why"]
    assert set(decision.importance) == set(SPACE)
    assert sum(decision.importance.values()) == pytest.approx(1)
    assert study_png(decision).startswith(b"\x89PNG")


def test_what_mattered_is_told_from_what_did_not():
    """Of forty trials whose score falls with the distance from one rate, the rate is the most important key."""
    study = study_of(trials=40)
    asked_by(study, 40)
    found = study.decide().importance
    assert sum(found.values()) == pytest.approx(1.0)
    assert max(found, key=lambda key: found[key]) == RATE


def test_lower_may_be_better():
    """For a loss the smallest value wins, and the sampler is told so."""
    study = study_of("loss", trials=3)
    for value in (0.3, 0.1, 0.2):
        asked = study.ask()
        assert asked
        study.tell(asked.number, Told(outcome="finished", value=value, values=[value]))
    assert study.decide().winner == 1


def test_a_study_without_a_finished_trial_says_why_of_each():
    """Nothing is served because of a tuning in which everything failed."""
    study = study_of(trials=2)
    for reason in ("NonFiniteLoss: the loss was lost", "ConfigError: batch_size: too small"):
        asked = study.ask()
        assert asked
        study.tell(asked.number, Told(outcome="failed", reason=reason))
    with pytest.raises(TuningFailed, match=r"trial 0: NonFiniteLoss.*; trial 1: ConfigError: batch_size: too small"):
        study.decide()
