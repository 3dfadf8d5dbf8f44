"""Two models' answers to the same rows, counted together: what a paired comparison rests on."""

from __future__ import annotations

import numpy as np


class Pairs:
    """Rows by (truth, candidate's answer, champion's answer): as many counts as there are such combinations."""

    def __init__(self) -> None:
        self._counts: dict[tuple[int, int, int], int] = {}

    def update(self, targets: np.ndarray, candidate: np.ndarray, champion: np.ndarray) -> None:
        """Count class numbers, three arrays of shape (n,)."""
        combined = np.stack([targets, candidate, champion], axis=1)
        found, counts = np.unique(combined, axis=0, return_counts=True)
        for key, count in zip(map(tuple, found.tolist()), counts.tolist(), strict=True):
            self._counts[key] = self._counts.get(key, 0) + count

    @property
    def joint(self) -> np.ndarray:
        """(m, 4) integers: truth, candidate's answer, champion's answer, rows; in order."""
        rows = [(*key, count) for key, count in sorted(self._counts.items())]
        return np.array(rows, dtype=np.int64).reshape(-1, 4)


class Closer:
    """Rows on which one of two regressions lies closer to the truth than the other."""

    def __init__(self) -> None:
        self.candidate = self.champion = 0

    def update(self, candidate: np.ndarray, champion: np.ndarray) -> None:
        """Count distances from the truth, two arrays of shape (n,) in the same units."""
        self.candidate += int((candidate < champion).sum())
        self.champion += int((champion < candidate).sum())
