"""Preprocessing against the same work as scripts: time, and memory that does not grow with the data."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import tables
from benchmarks.figures import Contestant, Figure, Findings, Samples, compare, take_turns
from benchmarks.installation import Installation
from benchmarks.preprocess_flow import ROUNDS as FLOW_ROUNDS
from benchmarks.preprocess_flow import flow_figures
from commands.environment import PROJECT
from commands.parts import STORE
from modelyard.storage import Store

OURS = "modelyard preprocess"
DUCKDB, POLARS, PANDAS = "DuckDB script", "polars script", "pandas script"
MEMORY_LIMIT_MB = 1200
DUCKDB_LIMIT_MB = 900  # what it is told; the process as a whole then stays near the limit
EXPONENT = 1.05
SIZES, QUICK_SIZES = (10**8, 10**9), (2 * 10**6, 4 * 10**6)
ROUNDS = {10**8: 3, 10**9: 1}
FORMS, LARGE, FLOW = ("csv", "parquet"), "large", "flow"  # which are its parts too
# A large set in a hundred files, and one more; of one form it is preprocessed, of the other it grows, too.
LARGE_FILES, LARGE_BYTES, QUICK_LARGE_BYTES = 100, 4 * 10**9, 8 * 10**6
GROWN_FRACTION, FLAT_FACTOR = 0.05, 1.15


def run(installation: Installation, quick: bool, parts: Sequence[str] = ()) -> Findings:
    """Measure all parts, or those that are named. Every contestant is a process of its own, whose peak memory the kernel
    tells.
    """
    store = Store(installation.up([STORE]))
    sizes = QUICK_SIZES if quick else SIZES
    figures: list[Figure] = []
    for form in FORMS:
        samples: dict[int, Samples] = {}
        if not parts or form in parts:
            samples = {size: _samples(installation.scratch, store, form, size) for size in sizes}
            figures += _figures(form, samples)
        if not parts or LARGE in parts:
            smaller = sizes[-1]
            taken = samples.get(smaller) or _samples(installation.scratch, store, form, smaller, [OURS])
            size = QUICK_LARGE_BYTES if quick else LARGE_BYTES
            figures += _large(installation.scratch, store, form, taken[OURS][0], smaller, size)
    if not parts or FLOW in parts:
        figures += flow_figures(installation, quick, _measured)
    return Findings(
        figures=figures,
        notes=[
            (
                "Mixed columns (an id, six numbers, two texts, a label), 1 % faulty rows, 2 % duplicates; sizes are those of the"
                " CSV. Work: check, reject with place and reason, exact duplicates over all rows, split by hash, zstd Parquet,"
                " mean and deviation of the training rows."
            ),
            (
                "Ours also hashes the files twice (snapshot, verification), keeps its own hash for the split, and uploads to"
                " the store on the same cores; the scripts write to the local disk."
            ),
            f"DuckDB was told {DUCKDB_LIMIT_MB} MB and may spill; polars (streaming) and pandas cannot be held to a limit.",
            (
                f"The large set lies in {LARGE_FILES} files. Of CSV, one more came then: seconds of the work with its"
                " snapshot; the process's start and imports are apart."
            ),
            (
                "As a flow: in a process of its own as the core is, on the embedded stack, with MLflow's run and report; in turns,"
                f" {FLOW_ROUNDS} times."
            ),
            f"One round at 1 GB, {ROUNDS[10**8]} at 0.1 GB; whole processes, with their start.",
        ],
    )


def _samples(scratch: Path, store: Store, form: str, size: int, names: Sequence[str] = ()) -> Samples:
    """Of all contestants, or of those that are named."""
    folder = scratch / f"{form}-{size}"
    tables.write(folder, form, tables.rows_for(size))
    commands = {
        OURS: ["preprocess_ours", str(folder)],
        DUCKDB: ["preprocess_duckdb", str(folder), str(scratch / "out"), form, str(DUCKDB_LIMIT_MB)],
        POLARS: ["preprocess_polars", str(folder), str(scratch / "out"), form],
        PANDAS: ["preprocess_pandas", str(folder), str(scratch / "out"), form],
    }

    def once(command: Sequence[str]) -> dict[str, float]:
        shutil.rmtree(scratch / "out", ignore_errors=True)
        store.delete([info.uri for info in store.list(f"{store.root}/artifacts")])  # else ours would find its result
        return _measured([sys.executable, "-m", f"benchmarks.peers.{command[0]}", *command[1:]])

    contestants: dict[str, Contestant] = {
        name: lambda command=command: once(command) for name, command in commands.items() if not names or name in names
    }
    try:
        return take_turns(contestants, ROUNDS.get(size, 1), warmups=0)
    finally:
        shutil.rmtree(folder)
        shutil.rmtree(scratch / "out", ignore_errors=True)


def _large(
    scratch: Path, store: Store, form: str, before: Mapping[str, float], smaller: int, size: int
) -> list[Figure]:
    """A set of many files against one of a quarter; and, of CSV, what one file more costs against the whole set."""
    folder, measured = scratch / "large", scratch / "measured.json"
    *_, last = tables.write(folder, form, tables.rows_for(size), LARGE_FILES + 1)
    last.rename(scratch / last.name)
    taken = []
    try:
        for _ in ("whole", "grown") if form == "csv" else ("whole",):
            command = [sys.executable, "-m", "benchmarks.peers.preprocess_ours", str(folder), str(measured)]
            taken.append(_measured(command) | json.loads(measured.read_text()))
            if not (folder / last.name).exists():
                (scratch / last.name).rename(folder / last.name)
    finally:
        shutil.rmtree(folder)
        store.delete([info.uri for info in store.list(f"{store.root}/artifacts")])
    whole, name = taken[0], f"{size / 1e9:g} GB of {form} in {LARGE_FILES} files"
    figures = _against_smaller(name, whole, smaller, before, size, flat=True)
    for grown in taken[1:]:
        more = f"one file more for {name}"
        figures += [
            _limit(more, [grown["work"]], "all files", [whole["work"]], "s", GROWN_FRACTION),
            _limit(more, [grown["work cpu"]], "all files", [whole["work cpu"]], "CPU s", None),
            _limit(f"{more}, with the process's start", [grown["seconds"]], "all files", [whole["seconds"]], "s", None),
        ]
    return figures


def _against_smaller(
    name: str, taken: Mapping[str, float], smaller: int, before: Mapping[str, float], size: int, *, flat: bool
) -> list[Figure]:
    """Our memory against the limit, and our time and memory against our own for less data."""
    against, growth = f"{smaller / 1e9:g} GB", (size / smaller) ** EXPONENT
    flatness = FLAT_FACTOR if flat else None
    return [
        _limit(f"memory, {name}", [taken["memory"]], "the limit", [MEMORY_LIMIT_MB], "MB", 1.0),
        _limit(f"time, {name}", [taken["seconds"]], against, [before["seconds"]], "s", growth),
        _limit(f"memory, {name}", [taken["memory"]], against, [before["memory"]], "MB", flatness),
    ]


def _measured(command: Sequence[str]) -> dict[str, float]:
    """Wall seconds, CPU seconds and peak memory in MB of a process that has to succeed."""
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    began = time.perf_counter()
    process = os.posix_spawn(
        command[0], list(command), environment, file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    )
    _, status, usage = os.wait4(process, 0)
    seconds = time.perf_counter() - began
    assert status == 0, f"{' '.join(command)} failed"
    return {"seconds": seconds, "cpu": usage.ru_utime + usage.ru_stime, "memory": usage.ru_maxrss / 1024}


def _figures(form: str, samples: dict[int, Samples]) -> list[Figure]:
    small, large = samples
    figures = []
    for size, taken in samples.items():
        name = f"{size / 1e9:g} GB of {form}"
        for other, target in {DUCKDB: 1.3, POLARS: 1.3, PANDAS: 0.5}.items():
            for measure, unit in {"seconds": "s", "cpu": "CPU s", "memory": "MB peak"}.items():
                figures.append(
                    compare(taken, measure, subject=OURS, against=other, name=name, unit=unit, better="less",
                            target=target if measure == "seconds" and size == large else None)
                )  # fmt: skip
    name = f"{large / 1e9:g} GB of {form}"
    return figures + _against_smaller(name, samples[large][OURS][0], small, samples[small][OURS][0], large, flat=False)


def _limit(
    name: str, values: Sequence[float], against: str, reference: Sequence[float], unit: str, target: float | None
) -> Figure:
    return Figure(
        name=name,
        subject=OURS,
        against=against,
        unit=unit,
        better="less",
        values=values,
        reference=reference,
        target=target,
    )
