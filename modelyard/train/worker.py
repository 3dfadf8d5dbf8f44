"""The process of one rank. Started by torch's launcher: ``python -m modelyard.train.worker <spec.json>``.

Here it is only loaded, which takes longer than anything else before the first step; what it does is in rank.py.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from modelyard.train.events import EventWriter
from modelyard.train.launcher import exit_with_parent, loading


def main() -> None:
    """Run one rank."""
    exit_with_parent()
    events = EventWriter(int(os.environ["RANK"]))
    _loaded()(Path(sys.argv[1]), events)


def _loaded() -> Callable[[Path, EventWriter], None]:
    """What runs a rank, with torch."""
    with loading():
        import torch._dynamo  # every optimizer of torch loads it when it is made  # noqa: F401

        from modelyard.train.rank import run
    return run


if __name__ == "__main__":
    main()
