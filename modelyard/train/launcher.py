"""The process in which torch's elastic launcher runs: ``python -m modelyard.train.launcher <torchrun arguments>``.

It adds one thing to the launcher: it ends when the process that started it is gone. Standard input is a pipe nobody
writes to; the launcher and, by inheritance, every rank hold its reading end. When the parent dies, however it dies,
the kernel closes the writing end and all of them read end-of-file. A rank that hangs may not get to read it: the launcher
kills what it has started before it ends itself.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress

import psutil

PARENT_GONE_STATUS = 75  # EX_TEMPFAIL


def exit_with_parent(first: Callable[[], None] = lambda: None) -> None:
    """End this process as soon as standard input is closed, and do something before. Reads nothing else from it."""
    threading.Thread(target=_watch_parent, args=[first], name="parent-watch", daemon=True).start()


def _watch_parent(first: Callable[[], None]) -> None:
    while os.read(0, 4096):
        pass
    try:
        first()
    finally:
        os._exit(PARENT_GONE_STATUS)


def kill_children() -> None:
    """End every process that this one has started, whatever it is doing; torch's launcher gives each rank a session of its
    own, so that no signal to a group reaches it."""
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            child.kill()


@contextmanager
def loading() -> Generator[None]:
    """Around imports of large libraries: Python's collector would look through all that they make again and again, a fifth of
    the time or more, and none of it is garbage, now or later."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def main() -> None:
    """Run torch's launcher with this process's arguments."""
    exit_with_parent(kill_children)
    with loading():
        from torch.distributed.run import main as run  # 2 s of imports: the watch must not wait for them
    run(sys.argv[1:])


if __name__ == "__main__":
    main()
