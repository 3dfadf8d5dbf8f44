"""Reading ahead: the next batch is parsed in a thread of its own while this one is worked on."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
END = object()


def ahead(items: Iterator[Item]) -> Generator[Item]:
    """The same items, one ahead. Whatever the source raises is raised here, in its turn."""
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(next, items, END)
        try:
            while (item := waiting.result()) is not END:
                waiting = pool.submit(next, items, END)
                yield item  # ty: ignore[invalid-yield]  (not END)
        finally:
            waiting.cancel()
            pool.submit(_close, items)


def _close(items: Iterator[object]) -> None:
    """In the thread that reads, after what it is at: a generator cannot be closed while it runs."""
    close = getattr(items, "close", None)
    if close:
        close()
