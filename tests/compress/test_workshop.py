"""Processes that crash, hang and raise, for real."""

from __future__ import annotations

import ctypes
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from torch import nn

from modelyard.compress import StaticInt8
from modelyard.compress.forms import from_onnx
from modelyard.compress.quiet import building, measuring
from modelyard.compress.workshop import Workshop
from modelyard.errors import ConversionFailed, MachineBusy
from modelyard.models.build import build_model, save_model
from modelyard.models.config import CustomConfig, ModelSpec
from modelyard.task_kinds import Target

TARGET = Target(column="kind", classes=[0, 1, 2])


class Odd(nn.Module):
    """A network that misbehaves when it runs, in the way it is told."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.layer, self.fault = nn.Linear(4, 3), fault

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        if self.fault == "crash":
            ctypes.string_at(0)
        elif self.fault == "hang":
            time.sleep(60)
        elif self.fault == "exit":
            os._exit(7)
        elif self.fault == "raise":
            raise RuntimeError(f"no such kernel on core {os.sched_getaffinity(0)}\nand ten more lines")
        elif self.fault == "fixed":
            return self.layer(features) * (2.0 if features.shape[0] == 2 else 1.0)
        outputs = self.layer(features)
        return outputs / (outputs * 0) if self.fault == "nan" else outputs


def odd(input_width: int, output_width: int, fault: str) -> nn.Module:
    return Odd(fault)


@pytest.fixture(scope="module")
def workshop() -> Iterator[Workshop]:
    with Workshop() as workshop:
        yield workshop


def order(folder: Path, fault: str) -> dict:
    """A request for a candidate of a small network, with its files in place."""
    for name in ("model", "out"):
        (folder / name).mkdir()
    model = CustomConfig(kind="custom", factory=f"{__name__}:odd", options={"fault": fault})
    spec = ModelSpec(model=model, input_width=4, output_width=3)
    save_model(spec, build_model(model, 4, 3).state_dict(), folder / "model")
    rng = np.random.default_rng(0)
    for name, values in {
        "features": rng.normal(size=(50, 4)).astype(np.float32),
        "targets": rng.integers(0, 3, 50),
        "calibration": rng.normal(size=(40, 4)).astype(np.float32),
    }.items():
        np.save(folder / f"{name}.npy", values)
    return {
        **{name: str(folder / f"{name}.npy") for name in ("features", "targets", "calibration")},
        "model": str(folder / "model"),
        "parent": str(folder / "model"),
        "out": str(folder / "out"),
        "target": TARGET.model_dump(mode="json"),
        "name": "x",
        "float": None,
        "technique": None,
        "threads": 1,
        "parity_tolerance": 1e-4,
        "confidence": 0.95,
    }


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("crash", "its process was ended by SIGSEGV"),
        pytest.param("exit", "its process ended with status 7", marks=pytest.mark.soak),
        ("hang", "took longer than its time and was killed"),
        ("nan", "NaN or infinite for 50 of 50 validation rows"),
        pytest.param("fixed", "does not take a batch of 1 rows", marks=pytest.mark.soak),
    ],
)
def test_a_candidate_falls_alone_and_says_why(workshop: Workshop, tmp_path: Path, fault: str, reason: str):
    """Whatever a network does to the process that tries it is a sentence here."""
    with pytest.raises(ConversionFailed, match=reason):
        workshop.run("build", order(tmp_path, fault), tmp_path / "job", 4 if fault == "hang" else 60)


def test_a_job_is_pinned_to_its_cores(workshop: Workshop, tmp_path: Path):
    """It runs where it is told to; and of what a network raises the first line is told."""
    core = max(os.sched_getaffinity(0))
    with pytest.raises(ConversionFailed, match=re.escape(f"no such kernel on core {{{core}}}") + "$"):
        workshop.run("build", order(tmp_path, "raise"), tmp_path / "job", 60, [core])


def test_a_calibration_of_other_rows_is_refused(workshop: Workshop, tmp_path: Path):
    """Rows of another unit, say: most of what comes would be cut off. Those that it is judged on tell."""
    request = order(tmp_path, "")
    np.save(request["calibration"], np.load(request["calibration"]) / 100)
    request["technique"] = StaticInt8().model_dump(mode="json")
    with pytest.raises(
        ConversionFailed, match=r"lie between -0\.0\d+ and 0\.0\d+, and 50 of 50 validation rows reach beyond"
    ):
        workshop.run("build", request, tmp_path / "job", 60)


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (np.zeros((5, 4)), "5 rows to calibrate with are too few, 16 are needed"),
        (np.full((40, 4), np.inf), "no finite numbers"),
    ],
)
def test_rows_that_fix_no_range_are_refused(tmp_path: Path, rows: np.ndarray, reason: str):
    """Too few of them, or impossible ones: the ranges would be chance."""
    with pytest.raises(ConversionFailed, match=reason):
        from_onnx(tmp_path / "x.onnx", tmp_path, "y", StaticInt8(), rows.astype(np.float32))


@pytest.mark.soak
def test_the_helper_ends_with_its_owner(tmp_path: Path):
    """A process that is killed leaves neither the helper behind nor a child that it had forked."""
    script = (
        "import json, sys; from pathlib import Path; from modelyard.compress.workshop import Workshop\n"
        "Workshop().run('build', json.loads(sys.argv[1]), Path(sys.argv[2]), 600)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry or "." for entry in sys.path)}
    owner = subprocess.Popen(
        [sys.executable, "-c", script, json.dumps(order(tmp_path, "hang")), str(tmp_path / "job")], env=environment
    )
    family = psutil.Process(owner.pid)
    deadline = time.monotonic() + 60
    while len(family.children(recursive=True)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    below = family.children(recursive=True)
    assert len(below) == 2, "the helper and its child"
    owner.kill()
    owner.wait()
    _, alive = psutil.wait_procs(below, timeout=10)
    assert not alive


def test_nobody_builds_while_somebody_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Builders share the machine; who measures has it alone, and nobody waits for ever."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # a machine of its own, whoever else builds here
    with ThreadPoolExecutor(1) as pool:
        with building(5), building(5):
            waiting = pool.submit(_measure_for, 0.0)
            with pytest.raises(TimeoutError):
                waiting.result(0.3)
        waiting.result(5)
    began = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        under_way = pool.submit(_measure_for, 0.5)
        time.sleep(0.1)
        with pytest.raises(MachineBusy, match=r"waited 0\.1 s for this machine to build"), building(0.1):
            pass
        with building(5):
            assert time.monotonic() - began >= 0.5
        under_way.result()


def test_builders_do_not_overtake_who_waits_to_measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Others that build one candidate after the other, so that the machine is never free, wait at the door meanwhile."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    done, begun = threading.Event(), threading.Barrier(3)

    def build_on(after: float) -> None:
        begun.wait(5)
        time.sleep(after)
        while not done.is_set():
            with building(5):
                time.sleep(0.1)

    with ThreadPoolExecutor(2) as pool:
        others = [pool.submit(build_on, after) for after in (0.0, 0.05)]
        begun.wait(5)
        time.sleep(0.1)
        try:
            with measuring(1):
                pass
        finally:
            done.set()
        for other in others:
            other.result(5)


def _measure_for(seconds: float) -> None:
    with measuring(5):
        time.sleep(seconds)
