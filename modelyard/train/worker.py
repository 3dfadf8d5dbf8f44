"""The process of one rank. Started by torch's launcher: ``python -m modelyard.train.worker <spec.json>``.

Here it is only loaded, which takes longer than anything else before the first step; what it does is in rank.py.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path

from modelyard.train.events import EventWriter
from modelyard.train.launcher import exit_with_parent


def main() -> None:
    """Run one rank."""
    exit_with_parent()
    events = EventWriter(int(os.environ["RANK"]))
    _loaded()(Path(sys.argv[1]), events)


def _loaded() -> Callable[[Path, EventWriter], None]:
    """What runs a rank, with torch. Python's collector would look through all that is made meanwhile again and again, a fifth of
    the time, and none of it is garbage, now or later."""
    gc.disable()
    import torch._dynamo  # every optimizer of torch loads it when it is made  # noqa: F401

    from modelyard.train.rank import run

    gc.freeze()
    gc.enable()
    return run


if __name__ == "__main__":
    main()
