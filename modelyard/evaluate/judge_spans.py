"""Models that find spans of texts under judgement: the counterpart of `judge.py` and `evidence.py`.

Entities are counted text by text, so every interval is one of drawing texts: two entities of one text are right or wrong
together more often than those of two.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from modelyard.datasets import Dataset
from modelyard.entities import entities_of
from modelyard.errors import ConfigError, DataError
from modelyard.evaluate.config import EvaluateConfig
from modelyard.evaluate.evidence import CANDIDATE, CHAMPION, Evidence, SliceScore, slice_notes
from modelyard.evaluate.grouped import GroupedSums, resample
from modelyard.evaluate.intervals import Interval, comparison, share_percentiles
from modelyard.evaluate.judge import Judged
from modelyard.evaluate.sample import here, spread
from modelyard.evaluate.slices import fit_slicers
from modelyard.model_package import ModelPackage
from modelyard.span_metrics import NUM_TOKEN_SUMS, SpanMetrics, scores_of_sums, span_sums
from modelyard.task_kinds import Target
from modelyard.token_labels import labels_of, spans_of_json
from modelyard.transform import TextTransform, joined

WORST_TEXTS = 8
NOTES = [
    "nobody disturbed it: spans would have to move along with typos and missing words",
    "nobody attacked it: a text cannot be changed by a little",
]


class JudgedSpans(Judged):
    """A loaded form of a package, and the counts of its entities."""

    def __init__(self, role: str, package: ModelPackage) -> None:
        self.role = role
        self.package = package
        self.labels = labels_of(package.spec.target.classes)
        self._metric = SpanMetrics(len(self.labels))
        self.sums = self._new_sums()
        self.slice_sums = defaultdict(self._new_sums)
        self.slice_rows: dict[str, int] = defaultdict(int)
        self.by_label: dict[str, Interval] = {}
        self.worst: list[dict[str, Any]] = []
        self._num_rows = self._num_finite = 0

    def read(self, frame: pd.DataFrame, groups: Sequence[np.ndarray]) -> np.ndarray:
        """Answer texts and compare with their spans; whether a text is right as a whole, (n,).

        Args:
            groups: for each column of slices the name of every row's slice, (n,).
        """
        outputs, targets = self.package.outputs(self.package.transform.rows(frame)), self.targets(frame)
        self._num_rows += len(frame)
        self._num_finite += int(np.isfinite(outputs).reshape(len(outputs), -1).all(axis=1).sum())
        sums = span_sums(np.nan_to_num(outputs), targets, len(self.labels))
        self._metric.state += sums.sum(axis=0)
        self.sums.add(sums)
        for names in groups:
            for name in np.unique(names.astype(str)):
                self.slice_sums[name].add(sums[names == name])
                self.slice_rows[name] += int((names == name).sum())
        errors = _errors(sums, len(self.labels))
        if self.role == CANDIDATE:
            self._remember_worst(frame, outputs, errors)
        return errors == 0

    def _new_sums(self) -> GroupedSums:
        return GroupedSums(3 * len(self.labels) + NUM_TOKEN_SUMS)

    def _remember_worst(self, frame: pd.DataFrame, outputs: np.ndarray, errors: np.ndarray) -> None:
        """The texts with most entities missed or made up, the first ones where as many are."""
        chosen = np.argsort(-errors, kind="stable")[:WORST_TEXTS]
        chosen = chosen[errors[chosen] > 0]
        if not len(chosen):
            return
        transform, target = self.package.transform, self.package.spec.target
        assert isinstance(transform, TextTransform)
        some, answers = frame.iloc[chosen], self.package.decode(np.nan_to_num(outputs[chosen]))
        texts = [str(text) for text in some[transform.column]]
        found = entities_of(transform, target.classes, texts, answers["tag"], answers["probability"])
        self.worst += [
            {
                "text": text,
                "errors": int(errors[at]),
                "truth": [span._asdict() for span in spans_of_json(kept)],
                "found": entities,
            }
            for at, text, kept, entities in zip(chosen, texts, some[target.column], found, strict=True)
        ]
        self.worst = sorted(self.worst, key=lambda one: -one["errors"])[:WORST_TEXTS]

    def headline(self) -> dict[str, float]:
        return {name: value for name, value in self._metric.compute().items() if np.isfinite(value)}

    @property
    def score_names(self) -> list[str]:
        return list(self._metric.compute())

    def details(self) -> dict[str, Any]:
        assert isinstance(self._metric, SpanMetrics)
        counted = self._metric.per_label()
        by_label = [
            {
                "label": label,
                **{name: float(values[number]) for name, values in counted.items()},
                "interval": self.by_label[label].model_dump() if label in self.by_label else None,
            }
            for number, label in enumerate(self.labels)
        ]
        return {**self.headline(), "rows": self._num_rows, "entities": {"labels": by_label, "worst": self.worst}}


def gather_spans(dataset: Dataset, judged: Mapping[str, JudgedSpans], config: EvaluateConfig) -> Evidence:
    """The evidence on models of spans: scores with intervals, by label and by slice, and the comparison with the champion.

    Raises:
        DataError: the test split is empty.
        ConfigError: a metric of another task, or a column to slice by that the data set lacks.
    """
    num_rows, candidate = dataset.num_rows("test"), judged[CANDIDATE]
    if not num_rows:
        raise DataError("the test split is empty")
    if config.metric not in (known := scores_of_sums(candidate.sums.total[None], len(candidate.labels))):
        raise ConfigError("evaluate.metric", f"token_classification has no {config.metric}; it has {', '.join(known)}")
    slicers = fit_slicers(config.slices, dataset.frames("test"), num_rows)
    chosen = spread(num_rows, config.golden_rows)
    golden, position, alone = [], 0, np.zeros(2, dtype=np.int64)
    for frame in dataset.frames("test"):
        groups = [slicer.names(frame) for slicer in slicers]
        right = {role: one.read(frame, groups) for role, one in judged.items()}
        if CHAMPION in right:
            own, other = right[CANDIDATE], right[CHAMPION]
            alone += [int((own & ~other).sum()), int((other & ~own).sum())]
        mine = here(chosen, position, len(frame))
        if len(mine):
            golden.append(candidate.package.transform.rows(frame.iloc[mine]))
        position += len(frame)
    evidence = Evidence(judged=judged, golden=joined(golden), notes=list(NOTES))
    _work_out(evidence, judged, num_rows, alone, config)
    return evidence


def _work_out(
    evidence: Evidence, judged: Mapping[str, JudgedSpans], num_rows: int, alone: np.ndarray, config: EvaluateConfig
) -> None:
    rng, candidate = np.random.default_rng(config.seed), judged[CANDIDATE]
    drawn = dict(zip(judged, resample([one.sums for one in judged.values()], rng, config.resamples), strict=True))
    for role, one in judged.items():
        evidence.intervals[role] = _intervals(one.sums.total, drawn[role], len(one.labels), num_rows, config)
        evidence.scores[role] = evidence.intervals[role][config.metric]
        for number, label in enumerate(one.labels):
            own = slice(3 * number, 3 * number + 3)
            _, found, there = one.sums.total[own]
            one.by_label[label] = share_percentiles(
                float(_f1(one.sums.total[None, own])[0]),
                _f1(drawn[role][:, own]),
                max(int(found), int(there), 1),
                config.confidence,
            )
    if CHAMPION in judged:
        values = {
            role: scores_of_sums(drawn[role], len(candidate.labels))[config.metric] for role in (CANDIDATE, CHAMPION)
        }
        observed = evidence.scores[CANDIDATE].value - evidence.scores[CHAMPION].value
        differences = values[CANDIDATE] - values[CHAMPION]
        evidence.comparison = comparison(observed, differences, int(alone[0]), int(alone[1]), config.confidence)
    evidence.slices = sorted(_slices(judged, config), key=lambda one: one.order)
    evidence.notes += slice_notes(evidence)
    if absent := [label for label, there in zip(candidate.labels, _there(candidate), strict=True) if not there]:
        evidence.notes.append(f"no text of the test split has {', '.join(absent)}: nothing is known about it")


def _slices(judged: Mapping[str, JudgedSpans], config: EvaluateConfig) -> list[SliceScore]:
    candidate, rival, found = judged[CANDIDATE], judged.get(CHAMPION), []
    for name, sums in sorted(candidate.slice_sums.items()):
        (drawn,) = resample([sums], np.random.default_rng(config.seed), config.resamples)
        score = _intervals(sums.total, drawn, len(candidate.labels), candidate.slice_rows[name], config)[config.metric]
        other = None
        if rival:
            other = float(scores_of_sums(rival.slice_sums[name].total[None], len(rival.labels))[config.metric][0])
        found.append(SliceScore(name=name, rows=candidate.slice_rows[name], score=score, champion=other))
    return found


def _intervals(
    total: np.ndarray, drawn: np.ndarray, num_labels: int, num_rows: int, config: EvaluateConfig
) -> dict[str, Interval]:
    """Of texts that are all without an error, as many texts count; that no entity was wrong is known of no fewer."""
    whole, resampled = scores_of_sums(total[None], num_labels), scores_of_sums(drawn, num_labels)
    return {
        name: share_percentiles(float(value[0]), resampled[name], num_rows, config.confidence)
        for name, value in whole.items()
        if np.isfinite(value).all() and np.isfinite(resampled[name]).all()
    }


def _f1(counts: np.ndarray) -> np.ndarray:
    """Of right, found, there (b, 3)."""
    return 2 * counts[:, 0] / np.maximum(counts[:, 1] + counts[:, 2], 1)


def _errors(sums: np.ndarray, num_labels: int) -> np.ndarray:
    """Entities of each text that were missed or made up, (n,)."""
    right, found, there = (sums[:, place : 3 * num_labels : 3].sum(axis=1) for place in range(3))
    return (found - right) + (there - right)


def _there(one: JudgedSpans) -> np.ndarray:
    return one.sums.total[2 : 3 * len(one.labels) : 3]


def is_for_spans(target: Target) -> bool:
    """Whether a data set asks for spans of texts."""
    return target.task == "token_classification"
