"""Models that turn texts into vectors under judgement: the counterpart of `judge.py` and `evidence.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from modelyard.datasets import Dataset
from modelyard.errors import ConfigError, DataError
from modelyard.evaluate.config import EvaluateConfig
from modelyard.evaluate.evidence import CANDIDATE, CHAMPION, FLOAT, Evidence, SliceScore, slice_notes
from modelyard.evaluate.intervals import Interval
from modelyard.evaluate.judge import Judged
from modelyard.evaluate.robustness import UNDISTURBED, Scores
from modelyard.evaluate.sample import gathered, thinned
from modelyard.evaluate.slices import fit_slicers
from modelyard.evaluate.text_disturbances import TEXT_DISTURBANCES
from modelyard.evaluate.vectors import AGREEMENT, Resampled, agreement, measured, resampled, resampled_rows
from modelyard.model_package import ModelPackage
from modelyard.task_kinds import Target
from modelyard.transform import TextTransform

MAX_ROWS = 20_000  # each text is compared with all partners


class JudgedVectors(Judged):
    """A loaded form of a package, and the vectors that it gave for the test split."""

    def __init__(self, role: str, package: ModelPackage) -> None:
        self.role = role
        self.package = package
        self.target = package.spec.target
        self.scores: dict[str, Interval] = {}
        self.resampled: Resampled | None = None
        self.agreement: Mapping[str, float] = {}
        self.texts = np.empty((0, 0))
        self.measured = np.empty(0)
        self.said: np.ndarray | None = None
        self._num_rows = self._num_finite = 0

    def read(self, frame: pd.DataFrame, target: Target, config: EvaluateConfig) -> None:
        """Answer the texts of a whole split, and score them against their partners as the data set's target says."""
        self.target = target
        self.texts, partners = self.vectors(list(frame[self._column])), self.vectors(list(frame[target.column]))
        finite = np.isfinite(self.texts).all(axis=1) & np.isfinite(partners).all(axis=1)
        self._num_rows, self._num_finite = len(frame), int(finite.sum())
        self.said = frame[target.similarity].to_numpy(dtype=np.float64) if target.similarity else None
        self.measured = measured(self.texts, partners, self.said)
        self.resampled = self.of_rows(np.arange(len(frame)), config)
        self.scores = self.resampled.intervals(config.confidence)

    def of_rows(self, rows: np.ndarray, config: EvaluateConfig) -> Resampled:
        """The scores of some rows, by number; each asks for its partner among those of all."""
        said = None if self.said is None else self.said[rows]
        return resampled_rows(self.measured[rows], said, resamples=config.resamples, seed=config.seed)

    def score_of_texts(self, texts: list[str], frame: pd.DataFrame, config: EvaluateConfig) -> float:
        """The gated metric with other texts in the place of those of the frame."""
        partners = self.vectors(list(frame[self.target.column]))
        return self._resampled(self.vectors(texts), partners, frame, config).values[config.metric]

    def vectors(self, texts: list[str]) -> np.ndarray:
        """Texts to vectors (n, d)."""
        transform = self.package.transform
        assert isinstance(transform, TextTransform)
        return self.package.outputs(transform.tokens(texts))

    def _resampled(
        self, texts: np.ndarray, partners: np.ndarray, frame: pd.DataFrame, config: EvaluateConfig
    ) -> Resampled:
        column = self.target.similarity
        said = frame[column].to_numpy(dtype=np.float64) if column else None
        return resampled(texts, partners, said, resamples=config.resamples, seed=config.seed)

    @property
    def _column(self) -> str:
        return self.package.transform.columns[0]

    def headline(self) -> dict[str, float]:
        found = {name: one.value for name, one in self.scores.items()} | dict(self.agreement)
        return {name: value for name, value in found.items() if np.isfinite(value)}

    @property
    def score_names(self) -> list[str]:
        return [*self.scores, *AGREEMENT]

    def value(self, metric: str) -> float:
        if metric not in self.scores:
            raise ConfigError("evaluate.metric", f"embedding has no {metric} here; it has {', '.join(self.scores)}")
        return self.scores[metric].value

    def details(self) -> dict[str, Any]:
        return {**self.headline(), "rows": self._num_rows}


def gather_vectors(dataset: Dataset, judged: Mapping[str, JudgedVectors], config: EvaluateConfig) -> Evidence:
    """The evidence on models of vectors: scores with intervals, nearness to the float form, disturbed texts.

    Raises:
        DataError: the test split is empty.
        ConfigError: a column to slice by that the data set lacks, or a metric that these pairs have not.
    """
    num_rows = dataset.num_rows("test")
    if not num_rows:
        raise DataError("the test split is empty")
    frame = gathered(dataset.frames("test"), num_rows, MAX_ROWS)
    notes = []
    if num_rows > MAX_ROWS:
        notes.append(f"judged on {MAX_ROWS:,} of {num_rows:,} test rows, spread evenly")
    for one in judged.values():
        one.read(frame, dataset.target, config)
    for one in judged.values():
        if one.texts.shape[1] == judged[FLOAT].texts.shape[1] and one.role in (CANDIDATE, FLOAT):
            one.agreement = agreement(one.texts, judged[FLOAT].texts)
    candidate = judged[CANDIDATE]
    candidate.value(config.metric)  # a metric that these pairs have not is refused here, by name
    golden = candidate.package.transform.rows(thinned(frame, config.golden_rows))
    evidence = Evidence(judged=judged, golden=golden, notes=notes)
    evidence.scores = {role: one.scores[config.metric] for role, one in judged.items()}
    evidence.intervals = {role: dict(one.scores) for role, one in judged.items()}
    if champion := judged.get(CHAMPION):
        assert candidate.resampled
        assert champion.resampled
        evidence.comparison = candidate.resampled.against(champion.resampled, config.metric, config.confidence)
    evidence.slices = _slices(judged, frame, config)
    evidence.notes += [*other_width(judged), *slice_notes(evidence)]
    evidence.disturbed = _disturb(judged, thinned(frame, config.robustness_rows), config)
    return evidence


def _slices(judged: Mapping[str, JudgedVectors], frame: pd.DataFrame, config: EvaluateConfig) -> list[SliceScore]:
    candidate, champion, found = judged[CANDIDATE], judged.get(CHAMPION), []
    for slicer in fit_slicers(config.slices, [frame], len(frame)):
        names = slicer.names(frame)
        for name in sorted(set(names)):
            rows = np.flatnonzero(names == name)
            score = candidate.of_rows(rows, config).intervals(config.confidence)[config.metric]
            other = champion.of_rows(rows, config).values[config.metric] if champion else None
            found.append(SliceScore(name=name, rows=len(rows), score=score, champion=other))
    return sorted(found, key=lambda one: one.order)


def _disturb(judged: Mapping[str, JudgedVectors], frame: pd.DataFrame, config: EvaluateConfig) -> Scores:
    """The score with disturbed texts that ask for partners as they are."""
    found: Scores = {}
    if frame.empty:
        return found
    for role, one in judged.items():
        plain = list(frame[one.package.transform.columns[0]])
        found.setdefault(UNDISTURBED, {})[role] = one.score_of_texts(plain, frame, config)
        for number, (name, change) in enumerate(TEXT_DISTURBANCES.items()):
            texts = change(plain, np.random.default_rng([config.seed, number]))
            found.setdefault(name, {})[role] = one.score_of_texts(texts, frame, config)
    return found


def other_width(judged: Mapping[str, Judged]) -> list[str]:
    """What a reader must know whose vectors change their width."""
    widths = {role: one.package.spec.target.width for role, one in judged.items()}
    if CHAMPION not in widths or widths[CHAMPION] == widths[CANDIDATE]:
        return []
    note = (
        f"a vector of the candidate has {widths[CANDIDATE]} numbers, the champion's {widths[CHAMPION]}: whoever keeps"
        " vectors must make them anew at the moment of the change"
    )
    return [note]


def is_for_vectors(target: Target) -> bool:
    """Whether a data set asks for vectors of texts."""
    return target.task == "embedding"
