"""`python -m modelyard.serve`: the endpoint. What holds the socket is `keeper`, what answers is `program`.

A router's first worker and its verifier are started before it loads anything: they do their own imports meanwhile, on
another core.
"""

from __future__ import annotations

import gc
import sys

from modelyard.serve.keeper import Inheritance, Keeper


def main() -> None:
    sys.exit(Keeper(run_router).run())


def run_router(inheritance: Inheritance) -> None:
    from modelyard.serve.starting import start_verifier, start_worker

    gc.disable()  # loading makes only what stays: a tenth of its time went into looking for garbage
    worker, verifier = start_worker(), start_verifier()
    from modelyard.serve.program import Prepared, run

    run(inheritance, Prepared(worker=worker, verifier=verifier))


if __name__ == "__main__":
    main()
