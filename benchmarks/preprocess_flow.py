"""What it costs that preprocessing is a flow: the same files by the flow, and by the core alone, in turns."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable

from benchmarks import tables
from benchmarks.figures import Contestant, Figure, compare, take_turns
from benchmarks.installation import Installation
from commands.parts import MLFLOW, PREFECT, STORE
from modelyard.storage import Store

FLOW, CORE = "modelyard preprocess, the flow", "the core alone"
SIZE, QUICK_SIZE = 10**9, 2 * 10**6
ROUNDS = 4  # the wall time of one run strays by a tenth and more
SHARE = 1.05

Measured = Callable[[list[str]], dict[str, float]]


def flow_figures(installation: Installation, quick: bool, measured: Measured) -> list[Figure]:
    """Against the core in a process of its own; both begin when everything is imported. The flow's part is Prefect's own
    work, and MLflow's: its run, its figures and the page of the report.

    Args:
        measured: runs a process and says what it took.
    """
    store = Store(installation.up([STORE, MLFLOW, PREFECT]))
    folder, took = installation.scratch / "flow", installation.scratch / "took.json"
    size = QUICK_SIZE if quick else SIZE
    tables.write(folder, "csv", tables.rows_for(size))

    def contestant(module: str) -> Contestant:
        def once() -> dict[str, float]:
            for left in ("artifacts", "history"):  # its result, and the digests of the files
                store.delete([info.uri for info in store.list(f"{store.root}/{left}")])
            command = [sys.executable, "-m", f"benchmarks.peers.{module}", str(folder), str(took)]
            return measured(command) | json.loads(took.read_text())

        return once

    contestants = {FLOW: contestant("preprocess_flow"), CORE: contestant("preprocess_ours")}
    try:
        samples = take_turns(contestants, 1 if quick else ROUNDS, warmups=0)
    finally:
        shutil.rmtree(folder)
    name = f"as a flow, {size / 1e9:g} GB of csv"
    return [
        compare(samples, measure, subject=FLOW, against=CORE, name=said, unit=unit, better="less", target=target)
        for measure, said, unit, target in (
            ("work", name, "s", SHARE),
            ("work cpu", name, "CPU s", None),
            ("seconds", f"{name}, with the process's start", "s", None),
        )
    ]
