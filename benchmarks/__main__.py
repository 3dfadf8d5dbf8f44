"""Measure Modelyard against peers and limits, on a stack of its own.

    python -m benchmarks [storage] [preprocess] [train] [compress] [evaluate] [lifecycle] [endpoint] [--quick] [--json PATH]
    python -m benchmarks endpoint --part start

Without names all of them run. Results go to `benchmarks/results/`; a quick run, or one of some parts, only prints, and
writes where ``--json`` says; with ``--update`` its parts replace their figures in the results.
"""

from __future__ import annotations

import argparse
import importlib
import json
import signal
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from benchmarks import report
from benchmarks.figures import Findings
from benchmarks.installation import Installation, own_installation

NAMES = ("storage", "preprocess", "train", "compress", "evaluate", "lifecycle", "endpoint")
PARTS = {
    "compress": ("perceptron", "convolutional", "minilm", "steady"),
    "endpoint": ("requests", "small", "guarded", "start", "way-back", "takeover", "texts"),
    "preprocess": ("csv", "parquet", "large", "flow"),
    "train": ("perceptron", "ranks", "decoder", "strategies", "saves", "start"),
}
Benchmark = Callable[[Installation, bool], Findings]


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    command = " ".join(["python -m benchmarks", *(sys.argv[1:] if arguments is None else arguments)])
    signal.signal(signal.SIGTERM, _leave)  # so that the stack is taken down
    documents = []
    with own_installation() as installation:
        for name in options.names or NAMES:
            print(f"{name} ...", flush=True)
            began = time.monotonic()
            findings = _load(name, options.parts)(installation, options.quick)
            document = report.as_json(name, findings, command=command, quick=options.quick)
            documents.append(document)
            if options.update:
                report.update(document)
            elif not options.quick and not options.parts:
                report.write(document)
            print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
            installation.clean()
    if options.json:
        options.json.write_text(json.dumps(documents, indent=1) + "\n")
    print(report.markdown(documents))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.parts and len(options.names) != 1:
        parser.error("--part needs the one benchmark that it is a part of: python -m benchmarks endpoint --part start")
    if options.update and (options.quick or not options.parts):
        parser.error(
            "--update is for some parts (--part), measured in full; a run of all of them writes its results anyway"
        )
    known = PARTS.get(options.names[0], ()) if options.parts else ()
    if wrong := [part for part in options.parts if part not in known]:
        parser.error(f"{options.names[0]} has no part {wrong[0]!r}: {', '.join(known) or 'it has none'}")
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", choices=[*NAMES, []], metavar="name", help=", ".join(NAMES))
    parser.add_argument("--quick", action="store_true", help="tiny counts: tries the harness, measures nothing")
    parser.add_argument(
        "--part", action="append", dest="parts", default=[], metavar="part",
        help="only this part of the one benchmark named",
    )  # fmt: skip
    parser.add_argument(
        "--update", action="store_true",
        help="with --part: put its figures into the results, in the place of earlier ones; the others stay, with their date",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, help="write the documents of this run there too")
    return parser


def _load(name: str, parts: Sequence[str]) -> Benchmark:
    """Its module's `run`; imported here, after this process became a client of its own stack."""
    run = importlib.import_module(f"benchmarks.{name}").run
    return partial(run, parts=parts) if parts else run


def _leave(number: int, frame: object) -> None:  # noqa: ARG001 (the handler's signature)
    raise SystemExit(128 + number)


if __name__ == "__main__":
    main()
