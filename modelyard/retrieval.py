"""What retrieval is: the items of a data set, where a query's own item stands among all of them, and the scores of that.

Each row asks for its own item among the whole catalogue; nothing is sampled, for sampled ranks order models otherwise
than whole ones (Krichene and Rendle, KDD 2020). Torch stays out, and pandas where no frames are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from modelyard.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

NEAR, FAR = 10, 100
QUERIES_AT_A_TIME, ITEMS_AT_A_TIME = 512, 8192  # 32 MB of scores
TIE = 1e-9  # scores that differ by less, as a fraction of their size, are the same
COUNT = "\x01rows"
FRAMES_AT_A_TIME = 32


def retrieval_rows(ranks: np.ndarray) -> dict[str, np.ndarray]:
    """What each row adds to the means that are the scores, (n,) each.

    Args:
        ranks: how many others stand before the right one, (n,).
    """
    gains = np.where(ranks < NEAR, 1.0 / np.log2(ranks + 2.0), 0.0)  # one is right, so the ideal gain is 1
    return {
        "recall_at_1": (ranks < 1).astype(np.float64),
        "recall_at_10": (ranks < NEAR).astype(np.float64),
        "ndcg_at_10": gains,
        "mrr": 1.0 / (ranks + 1.0),
    }


def item_rows(ranks: np.ndarray) -> dict[str, np.ndarray]:
    """The same for a catalogue of items: what comes behind it sorts some hundred of them again."""
    return retrieval_rows(ranks) | {"recall_at_100": (ranks < FAR).astype(np.float64)}


@dataclass(frozen=True)
class Standing:
    """Where the own items of some queries stand in the catalogue.

    Attributes:
        ranks: items that score higher, and half of those that score the same, (n,): a network that gives every item one
            vector finds nothing.
        losses: cross-entropy of the own item among all, in nats, (n,).
    """

    ranks: np.ndarray
    losses: np.ndarray


def standing(queries: np.ndarray, items: np.ndarray, own: np.ndarray, temperature: float = 1.0) -> Standing:
    """Rank the whole catalogue for each query by the dot product, in blocks: no array of queries x items is made.

    Args:
        queries: vectors (n, d).
        items: vectors (m, d).
        own: number of each query's item, (n,).
        temperature: that scores are divided by, for the losses.
    """
    ranks, losses = np.empty(len(queries)), np.empty(len(queries))
    far = items.astype(np.float64)
    for begin in range(0, len(queries), QUERIES_AT_A_TIME):
        end = begin + QUERIES_AT_A_TIME
        some = _ranked(queries[begin:end].astype(np.float64), far, own[begin:end], temperature)
        ranks[begin:end], losses[begin:end] = some.ranks, some.losses
    return Standing(ranks, losses)


def _ranked(queries: np.ndarray, items: np.ndarray, own: np.ndarray, temperature: float) -> Standing:
    right = (queries * items[own]).sum(axis=1)
    margin = TIE * np.maximum(np.abs(right), 1.0)
    ranks, top, total = np.zeros(len(queries)), right / temperature, np.zeros(len(queries))
    for begin in range(0, len(items), ITEMS_AT_A_TIME):
        scores = queries @ items[begin : begin + ITEMS_AT_A_TIME].T
        gaps = scores - right[:, None]
        ranks += (gaps > margin[:, None]).sum(axis=1) + (np.abs(gaps) <= margin[:, None]).sum(axis=1) / 2
        higher = np.maximum(top, scores.max(axis=1) / temperature)
        total = total * np.exp(top - higher) + np.exp(scores / temperature - higher[:, None]).sum(axis=1)
        top = higher
    # A score that is no number compares with nothing: the worst rank there is.
    ranks = np.where(np.isfinite(right) & np.isfinite(total), ranks - 0.5, float(len(items)))
    return Standing(ranks, top + np.log(total) - right / temperature)


class RetrievalMetrics:
    """Recall, NDCG and reciprocal rank over a catalogue, and the cross-entropy among all of it.

    The state is the number of queries, then the sum of each score, then that of the losses.
    """

    def __init__(self) -> None:
        self._names = list(item_rows(np.zeros(0)))
        self.state = np.zeros(len(self._names) + 2)

    def update(self, outputs: np.ndarray, targets: np.ndarray) -> None:
        """Count scores of all items (n, m), and the numbers of the right ones (n,)."""
        own = targets.astype(np.int64)
        right = outputs[np.arange(len(own)), own].astype(np.float64)[:, None]
        ranks = (outputs > right).sum(axis=1) + ((outputs == right).sum(axis=1) - 1) / 2
        top = outputs.max(axis=1, keepdims=True).astype(np.float64)
        totals = top[:, 0] + np.log(np.exp(outputs - top).sum(axis=1))
        self.count(Standing(ranks, totals - right[:, 0]))

    def count(self, found: Standing) -> None:
        """Count queries whose own items stand so."""
        sums = [own.sum() for own in item_rows(found.ranks).values()]
        self.state += [len(found.ranks), *sums, found.losses.sum()]

    def compute(self) -> dict[str, float]:
        means = (self.state[1:] / max(self.state[0], 1.0)).tolist()
        return dict(zip([*self._names, "loss"], means, strict=True))


@dataclass(frozen=True)
class Items:
    """The catalogue of a data set: every item that occurs in the rows it was collected from.

    Attributes:
        frame: a row an item, ordered by ``column``; further columns are as the item's first row has them.
        column: that tells items apart.
        counts: rows in which each occurs, (m,).
    """

    frame: pd.DataFrame
    column: str
    counts: np.ndarray

    @classmethod
    def collect(cls, frames: Iterable[pd.DataFrame], column: str, columns: Sequence[str]) -> Items:
        """Look through rows in their order.

        Args:
            columns: of an item, further ones.

        Raises:
            DataError: a column is missing, or there are no rows.
        """
        wanted = list(dict.fromkeys([column, *columns]))
        waiting: list[pd.DataFrame] = []
        for frame in frames:
            if missing := [name for name in wanted if name not in frame.columns]:
                raise DataError(f"the data set lacks columns of items: {', '.join(missing[:8])}")
            first = frame[wanted].assign(**{COUNT: frame.groupby(column)[column].transform("size")})
            waiting.append(first.drop_duplicates(column))
            if len(waiting) >= FRAMES_AT_A_TIME:
                waiting = [_merged(waiting, column)]
        if not waiting:
            raise DataError("there are no rows, so there are no items")
        whole = _merged(waiting, column).sort_values(column, ignore_index=True)
        return cls(whole.drop(columns=COUNT), column, whole[COUNT].to_numpy(dtype=np.int64))

    def __len__(self) -> int:
        return len(self.frame)

    def numbers(self, values: pd.Series) -> np.ndarray:
        """Places of items in the catalogue, (n,) int64.

        Raises:
            DataError: one is not in it.
        """
        import pandas as pd

        found = pd.Index(self.frame[self.column]).get_indexer(pd.Index(values))
        if (found < 0).any():
            raise DataError(f"item {values.iloc[int((found < 0).argmax())]!r} is not in the catalogue")
        return found.astype(np.int64)


def _merged(parts: Sequence[pd.DataFrame], column: str) -> pd.DataFrame:
    """Parts in their order as one: of each item its first row, and how often it occurred altogether."""
    import pandas as pd

    whole = pd.concat(parts, ignore_index=True)
    whole[COUNT] = whole.groupby(column)[COUNT].transform("sum")
    return whole.drop_duplicates(column)
