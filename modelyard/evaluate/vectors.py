"""How good the vectors of texts are, by pairs of texts: do they rank as people do, do they find what belongs together.

With a column of similarities: correlation of cosines with them (semantic textual similarity; Cer et al. 2017, arXiv
1708.00055). Without: each text asks for its own partner among all partners of the split (information retrieval; as the
Massive Text Embedding Benchmark counts, Muennighoff et al. 2022, arXiv 2210.07316).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from modelyard.evaluate.intervals import Comparison, Interval, comparison, share_percentiles
from modelyard.likeness import cosines
from modelyard.retrieval import retrieval_rows

ROWS_AT_A_TIME = 1024
AGREEMENT = ("cosine_to_float", "smallest_cosine_to_float")
BOOTSTRAP_ROWS = 4096  # a correlation is resampled over so many rows at most, spread evenly


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors (n, d) brought to length 1, float64; one of length 0 stays."""
    wide = vectors.astype(np.float64)
    return wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)


def partner_ranks(texts: np.ndarray, partners: np.ndarray) -> np.ndarray:
    """For each text how many partners lie nearer to it than its own, (n,); vectors are (n, d). What is as near as its own
    (the same text again, say) is not held against it."""
    near, far = unit(texts), unit(partners)
    ranks = np.empty(len(near), dtype=np.int64)
    for begin in range(0, len(near), ROWS_AT_A_TIME):
        some = near[begin : begin + ROWS_AT_A_TIME]
        found = some @ far.T
        own = found[np.arange(len(some)), np.arange(begin, begin + len(some))]
        ranks[begin : begin + len(some)] = (found > own[:, None] + 1e-12).sum(axis=1)
    return ranks


def correlations(one: np.ndarray, other: np.ndarray) -> dict[str, np.ndarray]:
    """Of resamples of pairs of numbers (b, n): by rank and by value, (b,) each; NaN where one side does not vary."""
    return {
        "spearman": _pearson(rankdata(one, axis=-1), rankdata(other, axis=-1)),
        "pearson": _pearson(one, other),
    }


@dataclass(frozen=True)
class Resampled:
    """Scores of vectors, and the same over resamples of the rows.

    Attributes:
        values: name of the score -> over all rows.
        drawn: name -> over resamples, (b,); two models' with the same seed and rows are of the same draws.
        misses: how far each row is from right, (n,): partners that lie nearer, or the gap between two orders.
    """

    values: dict[str, float]
    drawn: dict[str, np.ndarray]
    misses: np.ndarray

    def intervals(self, confidence: float) -> dict[str, Interval]:
        """Percentile bootstrap intervals."""
        rows = len(self.misses)
        return {name: _interval(value, self.drawn[name], rows, confidence) for name, value in self.values.items()}

    def against(self, champion: Resampled, metric: str, confidence: float) -> Comparison | None:
        """The paired comparison with a champion on the same rows; None where no resample gives a number."""
        differences = self.drawn[metric] - champion.drawn[metric]
        usable = differences[np.isfinite(differences)]
        if not len(usable):
            return None
        alone = (int((self.misses < champion.misses).sum()), int((champion.misses < self.misses).sum()))
        return comparison(self.values[metric] - champion.values[metric], usable, *alone, confidence)


def scores_of(
    texts: np.ndarray,
    partners: np.ndarray,
    similarity: np.ndarray | None,
    *,
    resamples: int,
    confidence: float,
    seed: int,
) -> dict[str, Interval]:
    """Every score with its percentile bootstrap interval over rows; arguments as `resampled`."""
    return resampled(texts, partners, similarity, resamples=resamples, seed=seed).intervals(confidence)


def resampled(
    texts: np.ndarray, partners: np.ndarray, similarity: np.ndarray | None, *, resamples: int, seed: int
) -> Resampled:
    """Every score, over all rows and over resamples of them.

    Args:
        texts, partners: vectors (n, d).
        similarity: as people gave it, (n,), or None.
    """
    return resampled_rows(measured(texts, partners, similarity), similarity, resamples=resamples, seed=seed)


def measured(texts: np.ndarray, partners: np.ndarray, similarity: np.ndarray | None) -> np.ndarray:
    """What is asked of each row (n,): the cosine of its two vectors, or how many partners lie nearer than its own."""
    return partner_ranks(texts, partners) if similarity is None else cosines(texts, partners)


def resampled_rows(found: np.ndarray, similarity: np.ndarray | None, *, resamples: int, seed: int) -> Resampled:
    """The same of rows, or some of them, that were `measured`, (n,)."""
    rng, num_rows = np.random.default_rng(seed), len(found)
    if similarity is None:
        rows = retrieval_rows(found)
        weights = rng.multinomial(num_rows, np.full(num_rows, 1 / num_rows), size=resamples) / num_rows
        drawn = {name: weights @ own for name, own in rows.items()}
        return Resampled({name: float(own.mean()) for name, own in rows.items()}, drawn, found.astype(np.float64))
    said = similarity.astype(np.float64)
    whole = correlations(found[None], said[None])
    some = np.unique(np.linspace(0, len(said) - 1, min(len(said), BOOTSTRAP_ROWS)).astype(np.int64))
    parts = [correlations(found[drawn], said[drawn]) for drawn in _draws(rng, some, resamples)]
    return Resampled(
        {name: float(value[0]) for name, value in whole.items()},
        {name: np.concatenate([part[name] for part in parts]) for name in whole},
        np.abs(rankdata(found) - rankdata(said)),
    )


def _draws(rng: np.random.Generator, rows: np.ndarray, resamples: int) -> list[np.ndarray]:
    """Numbers of rows drawn with replacement (b, n), in portions that fit into memory."""
    portion = max(1, 4_000_000 // len(rows))
    sizes = [min(portion, resamples - start) for start in range(0, resamples, portion)]
    return [rng.choice(rows, (size, len(rows))) for size in sizes]


def _interval(value: float, resampled: np.ndarray, rows: int, confidence: float) -> Interval:
    varied = resampled[np.isfinite(resampled)]
    return share_percentiles(value, varied if len(varied) else np.array([np.nan]), rows, confidence)


def _pearson(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    left, right = (side - side.mean(axis=-1, keepdims=True) for side in (one, other))
    size = np.sqrt((left**2).sum(axis=-1) * (right**2).sum(axis=-1))
    return np.where(size > 0, (left * right).sum(axis=-1) / np.where(size > 0, size, 1.0), np.nan)


def agreement(own: np.ndarray, reference: np.ndarray) -> Mapping[str, float]:
    """How near vectors (n, d) lie to those of another form of the model."""
    found = cosines(own, reference)
    return dict(zip(AGREEMENT, (float(found.mean()), float(found.min())), strict=True))
