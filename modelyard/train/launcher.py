"""The process in which torch's elastic launcher runs: ``python -m modelyard.train.launcher <torchrun arguments>``.

It adds one thing to the launcher: it ends when the process that started it is gone. Standard input is a pipe nobody
writes to; the launcher and, by inheritance, every rank hold its reading end. When the parent dies, however it dies,
the kernel closes the writing end and all of them read end-of-file.
"""

from __future__ import annotations

import os
import sys
import threading

PARENT_GONE_STATUS = 75  # EX_TEMPFAIL


def exit_with_parent() -> None:
    """End this process as soon as standard input is closed. Reads nothing else from it."""
    threading.Thread(target=_watch_parent, name="parent-watch", daemon=True).start()


def _watch_parent() -> None:
    while os.read(0, 4096):
        pass
    os._exit(PARENT_GONE_STATUS)


def main() -> None:
    """Run torch's launcher with this process's arguments."""
    exit_with_parent()
    from torch.distributed.run import main as run  # 2 s of imports: the watch must not wait for them

    run(sys.argv[1:])


if __name__ == "__main__":
    main()
