"""Ends what a dead program left in its process group; run by the supervisor as an event listener.

The supervisor kills a whole group when it stops a program, but not when the program dies by itself: MLflow's server
process would go on holding the port that the restarted program needs. `python -m commands.sweeper` has no arguments.
"""

from __future__ import annotations

import os
import signal
import sys

from supervisor import childutils


def main() -> None:
    """Answer the supervisor's events until it goes away."""
    while True:
        _, payload = childutils.listener.wait(sys.stdin, sys.stdout)
        event, _ = childutils.eventdata(payload + "\n")
        _end_group(int(event["pid"]))
        childutils.listener.ok(sys.stdout)


def _end_group(pid: int) -> None:
    """The supervisor makes each program the leader of a group of its own, so the group's id is the program's."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return  # it left nothing
    print(f"ended what was left of process group {pid}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
