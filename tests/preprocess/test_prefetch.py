"""Stages that run ahead of each other, each in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from contextlib import closing

import pytest

from modelyard.preprocess.prefetch import ahead


def doubled(numbers: Generator[int]) -> Iterator[int]:
    with closing(numbers):
        for number in numbers:
            if number == 7:
                raise ValueError("seven")
            yield 2 * number


def test_two_stages_ahead_keep_order_and_errors():
    """Every item in its turn, then what a stage in the middle met; no thread stays behind."""
    before = threading.active_count()
    found = []
    with pytest.raises(ValueError, match="seven"):
        found.extend(ahead(doubled(ahead(iter(range(100))))))
    assert found == [0, 2, 4, 6, 8, 10, 12]
    assert threading.active_count() == before


def test_who_stops_early_closes_every_stage():
    """The file behind the first stage is closed, not left to the garbage collector."""
    closed = []

    def endless() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.append(threading.current_thread().name)

    items = ahead(doubled(ahead(endless())))
    assert next(items) == 2
    items.close()
    assert len(closed) == 1
    assert closed != [threading.main_thread().name]
