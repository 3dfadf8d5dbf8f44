"""The study: what to try next, and what came of it. Pure: it trains nothing and knows no store.

`Study.ask` says what to try, `Study.tell` takes what came of it, in any order. What is asked next depends only on what
was asked and told before, so a study that was interrupted goes on where its trials end.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol

from pydantic import Field

from modelyard.artifacts import Frozen
from modelyard.errors import TuningFailed
from modelyard.metrics import LOWER_IS_BETTER
from modelyard.tune.config import TuneConfig
from modelyard.tune.pruning import bar_of

SHOWN_REASON = 300  # characters of each trial's reason in the sentence of a study that failed


class Ask(Frozen):
    """One trial to make.

    Attributes:
        parameters: dotted key of the configuration -> value.
        bar: number of a validation, from 1 -> the metric that the best validation up to there must not be worse than.
    """

    number: int
    parameters: dict[str, Any]
    bar: dict[int, float]


class Told(Frozen):
    """What came of a trial.

    Attributes:
        value: the metric of its best validation; None where it has none that counts.
        loss: of the same validation: of equal metrics the lower loss is better, as for the weights of one training.
        values: the metric at each validation.
        reason: why it is not finished.
    """

    outcome: Literal["finished", "pruned", "failed"]
    value: float | None = None
    loss: float = 0.0
    values: list[float] = Field(default_factory=list)
    seconds: float = 0.0
    reason: str = ""


class Standing(Frozen):
    """One trial at the end."""

    number: int
    parameters: dict[str, Any]
    outcome: Literal["winner", "loser", "pruned", "failed"]
    told: Told


class Decision(Frozen):
    """How a study ended.

    Attributes:
        winner: number of the best finished trial.
        importance: key -> share of the variance among the better trials, where there were enough to say.
    """

    winner: int
    why: str
    metric: str
    standings: list[Standing]
    importance: dict[str, float] = Field(default_factory=dict)

    @property
    def best(self) -> Standing:
        return next(one for one in self.standings if one.number == self.winner)


class Sampler(Protocol):
    """Where the next trial lies. The same for the same arguments, whoever asks."""

    def __call__(self, number: int, asked: Mapping[int, Ask], told: Mapping[int, Told]) -> dict[str, Any]:
        """Parameters of trial ``number``."""
        ...

    def importance(self, asked: Mapping[int, Ask], told: Mapping[int, Told]) -> dict[str, float]:
        """How much each key matters; empty where nobody can say."""
        ...


class Study:
    """The state of one study.

    Args:
        preset: what the configuration says of the keys: the first trial.
    """

    def __init__(self, config: TuneConfig, metric: str, preset: Mapping[str, Any], sampler: Sampler) -> None:
        self.config = config
        self.metric = metric
        self._preset = dict(preset)
        self._sampler = sampler
        self._asked: dict[int, Ask] = {}
        self._told: dict[int, Told] = {}

    @property
    def lower_is_better(self) -> bool:
        return self.metric in LOWER_IS_BETTER

    @property
    def seconds_left(self) -> float | None:
        """For trials that begin now; None: there is no bound."""
        if self.config.max_seconds is None:
            return None
        return max(self.config.max_seconds - sum(told.seconds for told in self._told.values()), 0.0)

    def ask(self) -> Ask | None:
        """The next trial; None when all were asked for, or the time is over."""
        number = len(self._asked)
        if number >= self.config.trials or self.seconds_left == 0.0:
            return None
        parameters = self._sampler(number, self._asked, self._told) if number else self._preset
        asked = Ask(number=number, parameters=parameters, bar=bar_of(self.config, self._told, self.lower_is_better))
        self._asked[number] = asked
        return asked

    def restore(self, asked: Ask) -> None:
        """Take up a trial that was asked for before, as it was then. In the order of their numbers, from 0."""
        assert asked.number == len(self._asked), "trials are restored in order"
        self._asked[asked.number] = asked

    def tell(self, number: int, told: Told) -> None:
        """Take what came of a trial."""
        self._told[number] = told

    def decide(self) -> Decision:
        """The best finished trial, and how everybody stands.

        Raises:
            TuningFailed: none was finished; says why of each.
        """
        finished = [number for number, told in sorted(self._told.items()) if told.outcome == "finished"]
        if not finished:
            reasons = [f"trial {number}: {told.reason[:SHOWN_REASON]}" for number, told in sorted(self._told.items())]
            raise TuningFailed(f"no trial was finished. {'; '.join(reasons) or 'tune.max_seconds left time for none'}")
        winner = max(finished, key=lambda number: (*self._score(number), -number))
        standings = [self._standing(number, winner) for number in sorted(self._told)]
        importance = self._sampler.importance(self._asked, self._told)
        return Decision(
            winner=winner, why=self._why(winner), metric=self.metric, standings=standings, importance=importance
        )

    # -- details ------------------------------------------------------------------------------------------

    def _score(self, number: int) -> tuple[float, float]:
        told = self._told[number]
        assert told.value is not None, "a finished trial has a value"
        return (-told.value if self.lower_is_better else told.value, -told.loss)

    def _why(self, winner: int) -> str:
        counts = {
            kind: sum(told.outcome == kind for told in self._told.values()) for kind in ("finished", "pruned", "failed")
        }
        among = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
        preset = self._told.get(0)
        before = f"; the preset as it is {preset.value:.4f}" if winner and preset and preset.value is not None else ""
        return f"{self.metric} {self._told[winner].value:.4f} in trial {winner} of {len(self._told)} ({among}){before}"

    def _standing(self, number: int, winner: int) -> Standing:
        told = self._told[number]
        outcome = "winner" if number == winner else "loser" if told.outcome == "finished" else told.outcome
        return Standing(number=number, parameters=self._asked[number].parameters, outcome=outcome, told=told)
