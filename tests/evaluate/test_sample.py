"""Rows of a split that is sorted, and larger than anybody holds."""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import numpy as np
import pandas as pd

from modelyard.evaluate.sample import gathered, here, spread, thinned


def test_a_sorted_split_is_looked_at_everywhere():
    """Of four classes in a row each gives its quarter; nothing wanted, or nothing there, is no error."""
    frame = pd.DataFrame({"kind": np.repeat(["a", "b", "c", "d"], 250)})
    assert thinned(frame, 40)["kind"].value_counts().tolist() == [10] * 4
    assert len(thinned(frame, 0)) == len(thinned(frame.iloc[:0], 5)) == 0
    assert len(thinned(frame, 5000)) == 1000


def test_portions_give_what_the_whole_gives():
    """Wherever the portions end, the same rows, once each."""
    chosen = spread(1000, 37)
    parts = [position + here(chosen, position, 300) for position in range(0, 1000, 300)]
    assert np.concatenate(parts).tolist() == chosen.tolist()


def test_no_more_than_a_portion_is_held():
    """While the next portion comes the one before the last is gone: a split larger than memory can be gathered from."""
    held: list[weakref.ref[pd.DataFrame]] = []

    def frames() -> Iterator[pd.DataFrame]:
        for number in range(50):
            frame = pd.DataFrame({"row": np.arange(number * 20, number * 20 + 20)})
            held.append(weakref.ref(frame))
            yield frame
            del frame
            assert sum(one() is not None for one in held) <= 1

    assert gathered(frames(), 1000, 10)["row"].tolist() == spread(1000, 10).tolist()
