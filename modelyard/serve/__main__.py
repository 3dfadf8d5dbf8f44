"""`python -m modelyard.serve`: the endpoint. What it does is in `program`.

The first worker and the verifier are started before this process loads anything: they do their own imports meanwhile,
on another core.
"""

from __future__ import annotations

from modelyard.serve.starting import start_verifier, start_worker


def main() -> None:
    worker, verifier = start_worker(), start_verifier()
    from modelyard.serve.program import run

    run(worker, verifier)


if __name__ == "__main__":
    main()
