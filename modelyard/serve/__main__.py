"""`python -m modelyard.serve`: the endpoint. What holds the socket is `keeper`, what answers is `program`.

A router's verifier is started before it loads anything, and does its own imports meanwhile, on another core; its first
worker as soon as what the two have in common is loaded, which the worker then shares.
"""

from __future__ import annotations

import gc
import os
import sys

from modelyard.serve.keeper import Inheritance, Keeper


def main() -> None:
    sys.exit(Keeper(run_router).run())


def run_router(inheritance: Inheritance) -> None:
    from modelyard.serve.starting import LEAN, fork_worker, start_verifier

    gc.disable()  # loading makes only what stays: a tenth of its time went into looking for garbage
    os.environ.update(LEAN)
    verifier, worker = start_verifier(), fork_worker()
    from modelyard.serve.program import Prepared, run

    run(inheritance, Prepared(worker=worker, verifier=verifier))


if __name__ == "__main__":
    main()
