"""The harness works: it measures on a real store of its own, writes what it found, and leaves nothing. The long run tries it
whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import psutil
import pytest

from benchmarks.__main__ import main
from benchmarks.figures import Figure, Findings, take_turns
from benchmarks.report import as_json, markdown, renewed
from commands.environment import PROJECT

RATIO_PARTS = {"median", "min", "max"}


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a quick run of the storage benchmark wrote."""
    path = tmp_path_factory.mktemp("bench") / "quick.json"
    command = [sys.executable, "-m", "benchmarks", "storage", "--quick", "--json", str(path)]
    # A busy environment must not leak in: the run is to use its own store.
    environment = os.environ | {"MODELYARD_S3_ENDPOINT_URL": "http://127.0.0.1:1"}
    done = subprocess.run(
        command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    (written,) = json.loads(path.read_text())
    return written


@pytest.mark.soak
def test_every_figure_is_a_ratio(document: dict[str, Any]):
    """Put, get, upload and download, each against every other client of the same run, with samples of both."""
    assert document["benchmark"] == "storage"
    assert document["machine"]["cores"]
    assert document["versions"]["obstore"]
    kinds = {figure["name"].split()[0] for figure in document["figures"]}
    assert kinds >= {"put", "get", "upload", "download"}
    for figure in document["figures"]:
        assert figure["ratio"].keys() == RATIO_PARTS
        assert figure["ratio"]["min"] > 0
        assert len(figure["subject_samples"]) == len(figure["against_samples"]) > 0


@pytest.mark.soak
def test_the_table_says_what_was_promised(document: dict[str, Any]):
    """Each promise stands in the table with its outcome, and a quick run says that it measured nothing."""
    table = markdown([document])
    promised = [figure for figure in document["figures"] if figure["target"] is not None]
    assert len(promised) == 8
    assert table.count("0.9 met") + table.count("0.9 **missed**") == 8
    assert "nothing was measured" in table


@pytest.mark.soak
def test_nothing_is_left(document: dict[str, Any]):
    """No process of the run's own stack outlives it."""
    assert document["quick"]
    lines = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    assert not [line for line in lines if "modelyard-bench-" in line and str(PROJECT) in line]


def test_ratios_are_taken_round_by_round():
    """Each has one turn a round, in orders that differ; a round in which everything is slow does not move the ratio."""
    order: list[str] = []

    def contestant(name: str, speed: float):
        def sample() -> dict[str, float]:
            order.append(name)
            return {"rate": speed}

        return sample

    samples = take_turns({"a": contestant("a", 1), "b": contestant("b", 2)}, rounds=8, warmups=0)
    rounds = [tuple(order[begin : begin + 2]) for begin in range(0, len(order), 2)]
    assert set(rounds) == {("a", "b"), ("b", "a")}
    assert [sample["rate"] for sample in samples["b"]] == [2] * 8
    figure = Figure(
        name="", subject="", against="", unit="", better="more", values=[9, 90], reference=[10, 100], target=0.9
    )
    assert figure.ratios == [0.9, 0.9]
    assert figure.is_met


def test_a_run_of_some_parts_keeps_the_others():
    """Its figures take the place of earlier ones; those that it lacks stay with their date, which the table tells."""

    def document(moment: str, **rates: float) -> dict[str, Any]:
        figures = [
            Figure(name=name, subject="us", against="them", unit="1/s", better="more", values=[rate], reference=[1.0])
            for name, rate in rates.items()
        ]
        made = as_json("endpoint", Findings(figures=figures, notes=["how"]), command="test", quick=False)
        return made | {"date": moment}

    first = document("monday", a=1.0, b=2.0)
    second = renewed(document("tuesday", b=3.0), first)
    third = renewed(document("friday", c=4.0), second)
    assert {figure["name"]: (figure["ratio"]["median"], figure.get("taken")) for figure in third["figures"]} == {
        "a": (1.0, "monday"),
        "b": (3.0, "tuesday"),
        "c": (4.0, None),
    }
    table = markdown([third])
    assert "- Taken monday, in an earlier run: a.\n" in table
    assert "- Taken tuesday, in an earlier run: b.\n" in table
    assert table.count("- how\n") == 1


@pytest.mark.parametrize("words", [["endpoint", "--update"], ["endpoint", "--part", "start", "--quick", "--update"]])
def test_only_parts_measured_in_full_update(words: list[str], capsys: pytest.CaptureFixture[str]):
    """A whole run writes its results anyway, and a quick one measures nothing."""
    with pytest.raises(SystemExit):
        main(words)
    assert "--update is for some parts" in capsys.readouterr().err
