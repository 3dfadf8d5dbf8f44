"""Everything a verdict rests on: one pass over the test split, then arithmetic on what was counted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from modelyard.artifacts import Frozen
from modelyard.datasets import Dataset
from modelyard.errors import DataError
from modelyard.evaluate.config import MIN_SLICE_ROWS, EvaluateConfig
from modelyard.evaluate.explain import explain
from modelyard.evaluate.grouped import resample
from modelyard.evaluate.intervals import (
    STATISTICS,
    Comparison,
    Interval,
    compare,
    comparison,
    interval,
    intervals,
    percentiles,
)
from modelyard.evaluate.judge import Judged
from modelyard.evaluate.pairs import Closer, Pairs
from modelyard.evaluate.parents import Parent
from modelyard.evaluate.robustness import Scores, attack, disturb
from modelyard.evaluate.sample import here, spread, thinned
from modelyard.evaluate.slices import Slicer, fit_slicers
from modelyard.task_kinds import Target
from modelyard.transform import TextTransform, joined

DRAWN_ROWS = 400  # of a regression's answers in a drawing
CANDIDATE, FLOAT, CHAMPION = "candidate", "float", "champion"


class SliceScore(Frozen):
    """One slice: its rows, the candidate's score with its interval, and the champion's score."""

    name: str
    rows: int
    score: Interval
    champion: float | None = None

    @property
    def is_decisive(self) -> bool:
        """Whether there are rows enough for a gate to look at it."""
        return self.rows >= MIN_SLICE_ROWS

    @property
    def order(self) -> float:
        """The worst first; what could not be computed is the worst there is."""
        return self.score.value if self.score.is_finite else -math.inf


class Cost(Frozen):
    """What a form costs whoever serves it; NaN where nobody measured.

    Attributes:
        size_bytes: of its file.
        latency_ms: median of one row, as measured when the form was made.
    """

    size_bytes: float = math.nan
    latency_ms: float = math.nan


@dataclass
class Evidence:
    """What was found out about the models under judgement.

    Attributes:
        golden: raw feature rows kept for the endpoint, (golden_rows, width); of texts their tokens.
        scores: role -> the gated metric with its interval.
        intervals: role -> other scores that have an interval, by name.
        disturbed: kind of disturbance -> role -> the gated metric over some rows, ``undisturbed`` among them.
        attacked: the same for kinds of attack.
        costs: role -> size and latency.
        champion_problem: why the champion could not be judged, where there is one; empty: it was, or there is none.
        explained: what the candidate's answers rest on, as `explain` says; None: nothing was looked at.
        notes: what a reader must know, as sentences.
    """

    judged: Mapping[str, Judged]
    golden: np.ndarray
    scores: dict[str, Interval] = field(default_factory=dict)
    intervals: dict[str, dict[str, Interval]] = field(default_factory=dict)
    comparison: Comparison | None = None
    costs: dict[str, Cost] = field(default_factory=dict)
    champion_problem: str = ""
    slices: list[SliceScore] = field(default_factory=list)
    disturbed: Scores = field(default_factory=dict)
    attacked: Scores = field(default_factory=dict)
    explained: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def candidate(self) -> Judged:
        return self.judged[CANDIDATE]


def gather(
    dataset: Dataset, judged: Mapping[str, Judged], parents: Mapping[str, Parent], config: EvaluateConfig
) -> Evidence:
    """Answer the test split with every model, and work out intervals, slices, comparison, disturbances and attacks.

    Args:
        parents: for each role of ``judged`` the trained network behind it.

    Raises:
        DataError: the test split is empty.
        ConfigError: a column to slice by that the data set lacks, or a metric that the task lacks.
    """
    if not dataset.num_rows("test"):
        raise DataError("the test split is empty")
    slicers = fit_slicers(config.slices, dataset.frames("test"), dataset.num_rows("test"))
    pairs, closer = Pairs(), Closer()
    golden, some = _pass_over(dataset, judged, slicers, pairs, closer, config)
    evidence = Evidence(judged=judged, golden=golden)
    evidence.candidate.value(config.metric)  # a metric of another task is refused here, by name
    evidence.disturbed = disturb(judged, thinned(some, config.robustness_rows), config)
    evidence.attacked = attack(judged, parents, thinned(some, config.robustness_rows), config)
    if evidence.candidate.finite_fraction == 1:
        few = thinned(some, config.explained_rows)
        evidence.explained = explain(judged[CANDIDATE], parents[CANDIDATE], few, config)
    _work_out_sums(evidence, closer, config)
    if evidence.candidate.is_classifier:
        _work_out_counts(evidence, pairs, config)
        evidence.notes = _absent_classes(evidence, dataset.target)
    evidence.notes += slice_notes(evidence)
    if config.explained_rows and evidence.candidate.finite_fraction < 1:
        evidence.notes.append("some answers are no numbers, so nothing is explained")
    if config.attack_strength and isinstance(evidence.candidate.package.transform, TextTransform):
        evidence.notes.append(
            "nobody attacked it: a text cannot be changed by a little; typos are among what disturbed it"
        )
    if evidence.attacked:
        evidence.notes += _orphans(parents)
    return evidence


def _pass_over(
    dataset: Dataset,
    judged: Mapping[str, Judged],
    slicers: Sequence[Slicer],
    pairs: Pairs,
    closer: Closer,
    config: EvaluateConfig,
) -> tuple[np.ndarray, pd.DataFrame]:
    """Returns the raw feature values of the golden rows, and rows to disturb and to explain as they are; both spread
    evenly."""
    num_rows = dataset.num_rows("test")
    chosen = spread(num_rows, config.golden_rows)
    looked_at = spread(num_rows, max(config.robustness_rows, config.explained_rows))
    drawn = spread(num_rows, DRAWN_ROWS)
    transform = judged[CANDIDATE].package.transform
    golden, some, position = [], [], 0
    for frame in dataset.frames("test"):
        groups = [slicer.names(frame) for slicer in slicers]
        outputs = {role: one.count(frame, groups) for role, one in judged.items()}
        if not judged[CANDIDATE].is_classifier:
            mine = here(drawn, position, len(frame))
            judged[CANDIDATE].remember(outputs[CANDIDATE][mine], frame.iloc[mine])
        if CHAMPION in judged and not judged[CANDIDATE].is_classifier:
            closer.update(*(judged[role].distances(outputs[role], frame) for role in (CANDIDATE, CHAMPION)))
        elif CHAMPION in judged:
            targets = judged[CANDIDATE].targets(frame)
            pairs.update(targets, outputs[CANDIDATE].argmax(axis=1), outputs[CHAMPION].argmax(axis=1))
        mine = here(chosen, position, len(frame))
        if len(mine):
            golden.append(transform.rows(frame.iloc[mine]))
        some.append(frame.iloc[here(looked_at, position, len(frame))])
        position += len(frame)
    return joined(golden), pd.concat(some)


def _work_out_sums(evidence: Evidence, closer: Closer, config: EvaluateConfig) -> None:
    """Intervals of losses, errors and calibration, and the comparison of two regressions, over the same resamples."""
    rng, judged = np.random.default_rng(config.seed), evidence.judged
    drawn = dict(zip(judged, resample([one.sums for one in judged.values()], rng, config.resamples), strict=True))
    for role, one in judged.items():
        found = {
            name: percentiles(float(statistic(one.sums.total[None])[0]), statistic(drawn[role]), config.confidence)
            for name, statistic in one.statistics.items()
        }
        evidence.intervals[role] = {name: one for name, one in found.items() if np.isfinite(one.low + one.high)}
        area = one.ranking.interval(rng, resamples=config.resamples, confidence=config.confidence)
        if area:
            evidence.intervals[role]["roc_auc"] = area
    if not evidence.candidate.is_classifier:
        _work_out_regression(evidence, closer, drawn, config)


def _work_out_regression(
    evidence: Evidence, closer: Closer, drawn: Mapping[str, np.ndarray], config: EvaluateConfig
) -> None:
    """Intervals of the gated score and its slices, and the comparison with the champion.

    Args:
        drawn: role -> sums over resamples, the same draws for each.
    """
    judged = evidence.judged
    evidence.scores = {
        role: found[config.metric] for role, found in evidence.intervals.items() if config.metric in found
    }
    if CHAMPION in evidence.scores and CANDIDATE in evidence.scores:
        candidate, champion = (judged[role].statistics[config.metric](drawn[role]) for role in (CANDIDATE, CHAMPION))
        observed = evidence.scores[CANDIDATE].value - evidence.scores[CHAMPION].value
        counts = (closer.candidate, closer.champion)
        evidence.comparison = comparison(observed, candidate - champion, *counts, config.confidence)
    rng, rival = np.random.default_rng(config.seed), judged.get(CHAMPION)
    for name, sums in sorted(evidence.candidate.slice_sums.items()):
        statistic = evidence.candidate.statistics[config.metric]
        (values,) = resample([sums], rng, config.resamples)
        score = percentiles(float(statistic(sums.total[None])[0]), statistic(values), config.confidence)
        other = float(rival.statistics[config.metric](rival.slice_sums[name].total[None])[0]) if rival else None
        evidence.slices.append(SliceScore(name=name, rows=int(sums.total[0]), score=score, champion=other))
    evidence.slices.sort(key=lambda one: one.order)


def _work_out_counts(evidence: Evidence, pairs: Pairs, config: EvaluateConfig) -> None:
    """Intervals of the scores and slices, and the comparison with the champion."""
    statistic, rng = STATISTICS[config.metric], np.random.default_rng(config.seed)
    options = {"resamples": config.resamples, "confidence": config.confidence}
    for role, one in evidence.judged.items():
        evidence.intervals[role] |= intervals(one.confusion, STATISTICS, rng, **options)
        evidence.scores[role] = evidence.intervals[role][config.metric]
    if len(pairs.joint):
        evidence.comparison = compare(pairs.joint, len(evidence.candidate.confusion), statistic, rng, **options)
    champion = evidence.judged.get(CHAMPION)
    for name, counted in sorted(evidence.candidate.slices.items()):
        other = champion.slices[name].compute()[config.metric] if champion else None
        score = interval(counted.confusion, statistic, rng, **options)
        evidence.slices.append(SliceScore(name=name, rows=int(counted.confusion.sum()), score=score, champion=other))
    evidence.slices.sort(key=lambda one: one.order)


def _absent_classes(evidence: Evidence, target: Target) -> list[str]:
    rows = evidence.candidate.confusion.sum(axis=1)
    absent = [str(label) for label, count in zip(target.classes, rows, strict=True) if not count]
    notes = []
    if len(absent) == len(target.classes) - 1:
        notes.append("the test split holds a single class: it cannot tell a good model from one that always answers it")
    elif absent:
        notes.append(f"no row of the test split is of class {', '.join(absent)}: nothing is known about it")
    return notes


def slice_notes(evidence: Evidence) -> list[str]:
    """Which slices no gate looks at, and which have no score, for a reader."""
    few = [one.name for one in evidence.slices if not one.is_decisive]
    unknown = [one.name for one in evidence.slices if not one.score.is_finite]
    notes = [f"fewer than {MIN_SLICE_ROWS} rows, so no gate looks at them: {_some(few)}"] if few else []
    return [*notes, f"no score could be computed of {_some(unknown)}"] if unknown else notes


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _orphans(parents: Mapping[str, Parent]) -> list[str]:
    """What a reader must know of models that no gradient could be had for; the float form shares its candidate's."""
    return [
        f"the {role} was attacked by tries alone, without gradients: {parent.reason}"
        for role, parent in parents.items()
        if parent.network is None and role != FLOAT
    ]
