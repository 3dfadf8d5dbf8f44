"""Where an item stands in a catalogue, and the catalogue of a data set."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import log_loss, ndcg_score, top_k_accuracy_score

from modelyard import retrieval
from modelyard.errors import DataError
from modelyard.retrieval import Items, RetrievalMetrics, item_rows, standing


def made(num_queries: int = 70, num_items: int = 130) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    items = rng.normal(size=(num_items, 5))
    own = rng.integers(0, num_items, num_queries)
    return items[own] + rng.normal(size=(num_queries, 5)), items, own


def test_blocks_give_what_scikit_learn_counts_over_all_scores(monkeypatch: pytest.MonkeyPatch):
    """Recall, NDCG and cross-entropy of the whole catalogue, whatever the size of the blocks; the accumulator fed with the
    scores themselves says the same."""
    queries, items, own = made()
    monkeypatch.setattr(retrieval, "QUERIES_AT_A_TIME", 16)
    monkeypatch.setattr(retrieval, "ITEMS_AT_A_TIME", 7)
    found = standing(queries, items, own, temperature=2.0)
    scores, labels = queries @ items.T, np.arange(len(items))
    rows = {name: float(one.mean()) for name, one in item_rows(found.ranks).items()}
    for k in (1, 10, 100):
        assert rows[f"recall_at_{k}"] == pytest.approx(top_k_accuracy_score(own, scores, k=k, labels=labels))
    assert rows["ndcg_at_10"] == pytest.approx(ndcg_score(np.eye(len(items))[own], scores, k=10))
    shares = np.exp(scores / 2.0)
    expected = log_loss(own, shares / shares.sum(axis=1, keepdims=True), labels=labels)
    assert found.losses.mean() == pytest.approx(expected)
    metric = RetrievalMetrics()
    metric.update(scores / 2.0, own)
    assert metric.compute() == pytest.approx(rows | {"loss": expected})


def test_a_network_that_has_collapsed_finds_nothing():
    """One vector for all items puts each in the middle; numbers that are none put it last."""
    queries, items, own = made()
    assert standing(queries, np.ones_like(items), own).ranks.tolist() == [(len(items) - 1) / 2] * len(own)
    assert standing(queries * np.nan, items, own).ranks.tolist() == [len(items)] * len(own)


def test_the_catalogue_is_every_item_once_as_it_came_first(monkeypatch: pytest.MonkeyPatch):
    """Counts over all frames however they are cut; a stranger, a missing column and no rows are said."""
    monkeypatch.setattr(retrieval, "FRAMES_AT_A_TIME", 2)
    frame = pd.DataFrame({"item": list("bacabbd"), "price": range(7), "user": 0})
    for size in (1, 2, 7):
        parts = (frame.iloc[begin : begin + size] for begin in range(0, 7, size))
        found = Items.collect(parts, "item", ["item", "price"])
        assert found.frame.to_dict("list") == {"item": list("abcd"), "price": [1, 0, 2, 6]}
        assert found.counts.tolist() == [2, 3, 1, 1]
    assert found.numbers(pd.Series(["d", "a"])).tolist() == [3, 0]
    with pytest.raises(DataError, match="item 'z' is not in the catalogue"):
        found.numbers(pd.Series(["a", "z"]))
    with pytest.raises(DataError, match="lacks columns of items: size"):
        Items.collect([frame], "item", ["size"])
    with pytest.raises(DataError, match="no rows"):
        Items.collect([], "item", [])
