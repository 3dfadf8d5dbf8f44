"""How well cosines of pairs agree with the likeness that people gave them."""

from __future__ import annotations

import numpy as np

NEARNESS = "cosine"


class LikenessMetrics:
    """Correlation of found likenesses with those given (semantic textual similarity; Cer et al. 2017, arXiv 1708.00055).

    The state is (2, n): what was found over what was given. Parts are joined, not added: ranks know no sums.
    """

    def __init__(self) -> None:
        self.state = np.zeros((2, 0))

    def update(self, outputs: np.ndarray, targets: np.ndarray) -> None:
        """Count pairs: cosines (n,) and what they should be, (n,)."""
        self.state = np.concatenate([self.state, np.stack([outputs, targets]).astype(np.float64)], axis=1)

    def compute(self) -> dict[str, float]:
        """``spearman`` and ``pearson``, 0 where one side does not vary; ``loss`` is the mean squared difference."""
        from scipy.stats import rankdata  # a tenth of a second that the endpoint does without

        found, given = self.state
        gap = float(((found - given) ** 2).mean()) if len(found) else 0.0
        return {
            "spearman": _correlation(rankdata(found), rankdata(given)),
            "pearson": _correlation(found, given),
            "loss": gap,
        }


class NearnessMetrics:
    """Mean cosine of vectors to those that they should be: a compressed network's to those of the one it was made of.

    The state is how many there were, and the sum of their cosines.
    """

    def __init__(self) -> None:
        self.state = np.zeros(2)

    def update(self, outputs: np.ndarray, targets: np.ndarray) -> None:
        """Count vectors (n, k), and what they should be, (n, k)."""
        self.state += [len(outputs), float(cosines(outputs, targets).sum())]

    def compute(self) -> dict[str, float]:
        """``cosine``."""
        return {NEARNESS: float(self.state[1] / max(self.state[0], 1.0))}


def cosines(own: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Of each row's two vectors, (n, k) each; (n,), 0 where one of them is."""
    left, right = own.astype(np.float64), others.astype(np.float64)
    size = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return (left * right).sum(axis=1) / np.maximum(size, 1e-12)


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    if len(one) < 2:
        return 0.0
    left, right = one - one.mean(), other - other.mean()
    size = float(np.sqrt((left**2).sum() * (right**2).sum()))
    return float((left * right).sum()) / size if size > 0 else 0.0
