"""`python -m modelyard.serve`: the endpoint. What it does is in `program`.

The first worker is started before this process loads anything: it does its own imports meanwhile, on another core.
"""

from __future__ import annotations

from modelyard.serve.starting import start_worker


def main() -> None:
    first = start_worker()
    from modelyard.serve.program import run

    run(first)


if __name__ == "__main__":
    main()
