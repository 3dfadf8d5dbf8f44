"""Samples, taken in turns, and the figures made of them: every one a ratio to something measured beside it."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal

Sample = Mapping[str, float]
Contestant = Callable[[], Sample]
Samples = dict[str, list[Sample]]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measure of a subject against a reference, sample by sample of the same round.

    Attributes:
        better: whether more or less of the measure is good, and so of the ratio.
        target: the ratio that was promised, if any was.
    """

    name: str
    subject: str
    against: str
    unit: str
    better: Literal["more", "less"]
    values: Sequence[float]
    reference: Sequence[float]
    target: float | None = None

    @property
    def ratios(self) -> list[float]:
        """Subject over reference, round by round."""
        return [mine / theirs for mine, theirs in zip(self.values, self.reference, strict=True)]

    @property
    def is_met(self) -> bool | None:
        """Whether the median ratio keeps the promise; None where nothing was promised."""
        if self.target is None:
            return None
        ratio = median(self.ratios)
        return ratio >= self.target if self.better == "more" else ratio <= self.target

    def as_json(self) -> dict[str, Any]:
        ratios = self.ratios
        return {
            "name": self.name,
            "subject": self.subject,
            "against": self.against,
            "ratio": {"median": median(ratios), "min": min(ratios), "max": max(ratios)},
            "better": self.better,
            "target": self.target,
            "met": self.is_met,
            "unit": self.unit,
            "subject_median": median(self.values),
            "against_median": median(self.reference),
            "subject_samples": list(self.values),
            "against_samples": list(self.reference),
        }


@dataclass
class Findings:
    """What a benchmark hands back. ``notes`` say how it was measured, in sentences for the table's reader."""

    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, more: Findings) -> None:
        self.figures += more.figures
        self.notes += more.notes


def take_turns(contestants: Mapping[str, Contestant], rounds: int, *, warmups: int = 1) -> Samples:
    """Every contestant once a round, in an order drawn anew for each: what else the machine does meets all alike.

    Drawn, not turned round: being always in the middle instead of at an end moved an upload's ratio from 1.0 to 0.8,
    because one file is still being written to disk while the next arrives.
    """
    draw = random.Random(0)
    samples: Samples = {name: [] for name in contestants}
    for number in range(-warmups, rounds):
        for name in draw.sample(list(contestants), len(contestants)):
            sample = contestants[name]()
            if number >= 0:
                samples[name].append(sample)
    return samples


def compare(
    samples: Samples,
    measure: str,
    *,
    subject: str,
    against: str,
    name: str,
    unit: str,
    better: Literal["more", "less"],
    target: float | None = None,
) -> Figure:
    """The figure of one measure from samples that were taken in turns."""
    return Figure(
        name=name,
        subject=subject,
        against=against,
        unit=unit,
        better=better,
        values=[sample[measure] for sample in samples[subject]],
        reference=[sample[measure] for sample in samples[against]],
        target=target,
    )
