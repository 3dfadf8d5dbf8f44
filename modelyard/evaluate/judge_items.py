"""Models for retrieval under judgement: does a query find its own item in the whole catalogue. The counterpart of `judge.py`
and `evidence.py`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Catalog
from modelyard.datasets import SPLITS, Dataset
from modelyard.errors import ConfigError, DataError
from modelyard.evaluate.config import EvaluateConfig
from modelyard.evaluate.evidence import CANDIDATE, CHAMPION, FLOAT, Evidence, SliceScore, slice_notes
from modelyard.evaluate.grouped import GroupedSums, resample
from modelyard.evaluate.intervals import Interval, comparison, share_percentiles
from modelyard.evaluate.judge import Judged
from modelyard.evaluate.judge_vectors import other_width
from modelyard.evaluate.pairs import Closer
from modelyard.evaluate.sample import here, spread
from modelyard.evaluate.slices import fit_slicers
from modelyard.evaluate.vectors import AGREEMENT
from modelyard.likeness import cosines
from modelyard.model_package import ModelPackage
from modelyard.retrieval import Items, item_rows, standing
from modelyard.task_kinds import Target

MAX_QUERIES = 20_000  # each is compared with every item
SCORES = tuple(item_rows(np.zeros(0)))
COUNT = len(SCORES)  # place of the number of rows, behind the sums of scores


class JudgedItems(Judged):
    """A loaded form of a package, the vectors of the catalogue, and how its queries' own items stood."""

    def __init__(self, role: str, package: ModelPackage) -> None:
        self.role = role
        self.package = package
        self.sums = GroupedSums(COUNT + 1)
        self.slice_sums: dict[str, GroupedSums] = defaultdict(lambda: GroupedSums(COUNT + 1))
        self.cosines = np.empty(0)
        self._items = np.empty((0, 0))
        self._num_rows = self._num_finite = 0

    def check_fits(self, target: Target, columns: list[str]) -> None:
        """As for rows with answers; the item's columns must be there too.

        Raises:
            DataError: another question, columns that the data set lacks, or a package without the half that reads items.
        """
        super().check_fits(target, columns)
        own = self.package.spec.target.items
        missing = sorted(set(own.columns if own else []) - set(target.items.columns if target.items else []))
        if missing:
            raise DataError(
                f"the {self.role} cannot be judged on this data set: it takes columns of items that the set lacks:"
                f" {', '.join(missing[:8])}"
            )
        if self.package.spec.items is None:
            raise DataError(
                f"the {self.role} cannot be judged: its package has nothing that reads items; compress it anew"
            )

    def know(self, items: Items) -> None:
        """Make the vectors of a catalogue."""
        self._items = self.package.item_vectors(items.frame).astype(np.float64)
        if not np.isfinite(self._items).all():
            raise DataError(f"the {self.role}: vectors of items are no finite numbers")

    def rank(self, frame: pd.DataFrame, own: np.ndarray, groups: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Rank the catalogue for some rows, and count where their own items stand.

        Args:
            own: number of each row's item, (n,).
            groups: for each column of slices the name of every row's slice, (n,).

        Returns:
            The vectors of the queries (n, d), and the ranks (n,).
        """
        vectors = self.package.outputs(self.package.transform.rows(frame))
        ranks = standing(vectors, self._items, own).ranks
        rows = np.column_stack([*item_rows(ranks).values(), np.ones(len(ranks))])
        self.sums.add(rows)
        for names in groups:
            for name in np.unique(names.astype(str)):
                self.slice_sums[name].add(rows[names == name])
        self._num_rows += len(ranks)
        self._num_finite += int(np.isfinite(vectors).all(axis=1).sum())
        return vectors, ranks

    def headline(self) -> dict[str, float]:
        total = self.sums.total
        found = {name: float(total[at] / max(total[COUNT], 1.0)) for at, name in enumerate(SCORES)}
        if len(self.cosines):
            found |= dict(zip(AGREEMENT, (float(self.cosines.mean()), float(self.cosines.min())), strict=True))
        return found

    @property
    def score_names(self) -> list[str]:
        return [*SCORES, *AGREEMENT]

    def value(self, metric: str) -> float:
        if metric not in SCORES:
            raise ConfigError("evaluate.metric", f"retrieval has no {metric}; it has {', '.join(SCORES)}")
        return self.headline()[metric]

    def details(self) -> dict[str, Any]:
        return {**self.headline(), "rows": self._num_rows, "items": len(self._items)}


def gather_items(
    catalog: Catalog,
    ref: ArtifactRef,
    dataset: Dataset,
    judged: Mapping[str, JudgedItems],
    config: EvaluateConfig,
) -> Evidence:
    """The evidence on models for retrieval: every test row asks for its own item among all items of all splits.

    Raises:
        DataError: the test split is empty.
        ConfigError: a column to slice by that the data set lacks, or a metric that the task lacks.
    """
    num_rows = dataset.num_rows("test")
    if not num_rows:
        raise DataError("the test split is empty")
    judged[CANDIDATE].value(config.metric)  # a metric of another task is refused here, by name
    items = _catalogue(catalog, ref, dataset, judged.values())
    for one in judged.values():
        one.know(items)
    slicers = fit_slicers(config.slices, dataset.frames("test"), num_rows)
    notes = [f"each query is ranked against all {len(items):,} items; what its user met before is ranked as any other"]
    if num_rows > MAX_QUERIES:
        notes.append(f"judged on {MAX_QUERIES:,} of {num_rows:,} test rows, spread evenly")
    closer, golden = Closer(), []
    chosen = spread(min(num_rows, MAX_QUERIES), config.golden_rows)
    for numbers, frame in _frames(dataset, num_rows):
        own = items.numbers(frame[items.column])
        groups = [slicer.names(frame) for slicer in slicers]
        found = {role: one.rank(frame, own, groups) for role, one in judged.items()}
        if CHAMPION in found:
            closer.update(found[CANDIDATE][1], found[CHAMPION][1])
        near = cosines(found[CANDIDATE][0], found[FLOAT][0])
        judged[CANDIDATE].cosines = np.concatenate([judged[CANDIDATE].cosines, near])
        golden.append(frame[np.isin(numbers, chosen)])
    transform = judged[CANDIDATE].package.transform
    evidence = Evidence(judged=judged, golden=transform.rows(pd.concat(golden)), notes=notes)
    _work_out(evidence, judged, closer, config)
    evidence.notes += [*other_width(judged), *slice_notes(evidence)]
    return evidence


def _catalogue(catalog: Catalog, ref: ArtifactRef, dataset: Dataset, judged: Iterable[JudgedItems]) -> Items:
    columns = {name for one in judged if (own := one.package.spec.target.items) for name in own.columns}
    frames = (frame for split in SPLITS for frame in dataset.fetched_frames(catalog, ref, split))
    return Items.collect(frames, dataset.target.column, sorted(columns))


def _frames(dataset: Dataset, num_rows: int) -> Iterator[tuple[np.ndarray, pd.DataFrame]]:
    """The rows that are judged, with their numbers among these."""
    taken, position, before = spread(num_rows, MAX_QUERIES), 0, 0
    for frame in dataset.frames("test"):
        mine = here(taken, position, len(frame))
        if len(mine):
            yield before + np.arange(len(mine)), frame.iloc[mine]
        position, before = position + len(frame), before + len(mine)


def _work_out(evidence: Evidence, judged: Mapping[str, JudgedItems], closer: Closer, config: EvaluateConfig) -> None:
    """Intervals, slices and the paired comparison, over the same resamples of queries for each model."""
    rng = np.random.default_rng(config.seed)
    drawn = dict(zip(judged, resample([one.sums for one in judged.values()], rng, config.resamples), strict=True))
    for role, one in judged.items():
        means = drawn[role][:, :COUNT] / drawn[role][:, COUNT:]
        found = one.headline()
        evidence.intervals[role] = {
            name: share_percentiles(found[name], means[:, at], int(one.sums.total[COUNT]), config.confidence)
            for at, name in enumerate(SCORES)
        }
        evidence.scores[role] = evidence.intervals[role][config.metric]
    at = SCORES.index(config.metric)
    if CHAMPION in judged:
        candidate, champion = (drawn[role][:, at] / drawn[role][:, COUNT] for role in (CANDIDATE, CHAMPION))
        observed = evidence.scores[CANDIDATE].value - evidence.scores[CHAMPION].value
        counts = (closer.candidate, closer.champion)
        evidence.comparison = comparison(observed, candidate - champion, *counts, config.confidence)
    rng, rival = np.random.default_rng(config.seed), judged.get(CHAMPION)
    for name, sums in sorted(judged[CANDIDATE].slice_sums.items()):
        (values,) = resample([sums], rng, config.resamples)
        score = _slice_score(sums, values, at, config)
        other = None
        if rival:
            total = rival.slice_sums[name].total
            other = float(total[at] / total[COUNT])
        evidence.slices.append(SliceScore(name=name, rows=int(sums.total[COUNT]), score=score, champion=other))
    evidence.slices.sort(key=lambda one: one.order)


def _slice_score(sums: GroupedSums, values: np.ndarray, at: int, config: EvaluateConfig) -> Interval:
    value = float(sums.total[at] / sums.total[COUNT])
    return share_percentiles(value, values[:, at] / values[:, COUNT], int(sums.total[COUNT]), config.confidence)
