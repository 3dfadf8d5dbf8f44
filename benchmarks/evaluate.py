"""A verdict on a million rows against a script that works out the same numbers with scikit-learn and SciPy."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.figures import Figure, Findings, Samples, compare, take_turns
from benchmarks.installation import Installation
from commands.environment import PROJECT
from commands.parts import STORE
from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Catalog, Origin
from modelyard.compress import CompressConfig, compress
from modelyard.models import MlpConfig
from modelyard.preprocess import PreprocessConfig, SplitConfig, preprocess, snapshot
from modelyard.storage import Store
from modelyard.train import TrainConfig, train

OURS, SCRIPTED = "modelyard evaluate", "scikit-learn and SciPy script"
SECONDS_LIMIT, MEMORY_LIMIT_MB = 60.0, 1500.0
NUM_COLUMNS, NUM_CLASSES, NUM_REGIONS = 10, 5, 20
RESAMPLES = 10_000
# The script's bootstrap takes minutes; it is timed on fewer resamples and counted as if on all of them.
SCRIPTED_RESAMPLES = 200
ROWS, QUICK_ROWS = 1_000_000, 20_000
ROUNDS = 3


def run(installation: Installation, quick: bool) -> Findings:
    """Measure. Both read the same test split, answer it with the same files on one thread each, in whole processes."""
    catalog = Catalog(Store(installation.up([STORE])))
    num_rows = QUICK_ROWS if quick else ROWS
    dataset, candidate, champion = _artifacts(catalog, installation.scratch, num_rows)
    folders = [installation.scratch / name for name in ("dataset", "candidate", "champion")]
    for ref, folder in zip((dataset, candidate, champion), folders, strict=True):
        catalog.fetch(ref, folder)

    def ours() -> dict[str, float]:
        catalog.store.delete([info.uri for info in catalog.store.list(f"{catalog.store.root}/artifacts/verdict")])
        names = [dataset.digest, candidate.digest, champion.digest]
        return _measured("evaluate_ours", [*names, str(RESAMPLES)])[0]

    def scripted() -> dict[str, float]:
        sample, said = _measured("evaluate_scripted", [*map(str, folders), str(SCRIPTED_RESAMPLES)])
        bootstrap = float(said.split()[-2])
        return {**sample, "seconds": sample["seconds"] + bootstrap * (RESAMPLES / SCRIPTED_RESAMPLES - 1)}

    samples = take_turns({OURS: ours, SCRIPTED: scripted}, 1 if quick else ROUNDS, warmups=0)
    return Findings(figures=_figures(samples, num_rows), notes=_notes(num_rows))


def _artifacts(catalog: Catalog, scratch: Path, num_rows: int) -> tuple[ArtifactRef, ArtifactRef, ArtifactRef]:
    """A data set whose test split has about ``num_rows`` rows, and two packages of perceptrons."""
    folder = scratch / "raw"
    folder.mkdir()
    rng, share = np.random.default_rng(0), 0.95
    centres = rng.normal(size=(NUM_CLASSES, NUM_COLUMNS))
    for number in range(10):
        size = int(num_rows / share / 10)
        labels = rng.integers(0, NUM_CLASSES, size)
        columns = centres[labels] + rng.normal(scale=1.5, size=(size, NUM_COLUMNS))
        frame = pd.DataFrame(columns, columns=[f"x{at}" for at in range(NUM_COLUMNS)])
        frame = frame.assign(region=rng.integers(0, NUM_REGIONS, size), label=labels)
        frame.to_parquet(folder / f"rows-{number}.parquet")
    origin = Origin()
    config = PreprocessConfig(
        target="label",
        features=[f"x{at}" for at in range(NUM_COLUMNS)],
        keep=["region"],
        split=SplitConfig(train=0.03, validation=0.02, test=share),
    )
    dataset = preprocess(catalog, snapshot(catalog, f"file://{folder}", origin).ref, config, origin).ref
    packages = []
    for width in (64, 8):
        trained = TrainConfig(model=MlpConfig(hidden_sizes=(width,)), max_epochs=2, ranks=1)
        model = train(catalog, dataset, trained, origin).ref
        packages.append(compress(catalog, model, dataset, CompressConfig(), origin).ref)
    return dataset, packages[0], packages[1]


def _measured(program: str, arguments: Sequence[str]) -> tuple[dict[str, float], str]:
    """Wall seconds and peak memory in MB of a process that has to succeed, and what it printed."""
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-m", f"benchmarks.peers.{program}", *arguments]
    began = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, f"{' '.join(command)} failed"
    return {"seconds": seconds, "memory": usage.ru_maxrss / 1024}, said


def _figures(samples: Samples, num_rows: int) -> list[Figure]:
    name = f"{num_rows:,} rows, {RESAMPLES:,} resamples, {NUM_REGIONS} slices"
    limits = [("seconds", "s", SECONDS_LIMIT), ("memory", "MB peak", MEMORY_LIMIT_MB)]
    return [
        compare(samples, "seconds", subject=OURS, against=SCRIPTED, name=name, unit="s", better="less"),
        compare(samples, "memory", subject=OURS, against=SCRIPTED, name=name, unit="MB peak", better="less"),
        *(
            Figure(name=f"{name}, {measure}", subject=OURS, against="the limit", unit=unit, better="less",
                   values=[sample[measure] for sample in samples[OURS]], reference=[limit] * len(samples[OURS]), target=1.0)
            for measure, unit, limit in limits
        ),
    ]  # fmt: skip


def _notes(num_rows: int) -> list[str]:
    return [
        (
            f"A perceptron {NUM_COLUMNS}-64-{NUM_CLASSES} in int8 and float and a champion {NUM_COLUMNS}-8-{NUM_CLASSES} answer"
            f" {num_rows:,} test rows; both contestants read them from Parquet, on one thread of the engine."
        ),
        (
            "Both: accuracy, F1, per-class scores, confusion, ROC-AUC, loss, intervals of the accuracy of each model and slice,"
            " paired comparison. Ours besides: intervals of loss and calibration, disturbances, attacks, explanations, golden"
            " rows, report and card, fetched from the store and written to it."
        ),
        (
            f"The script's bootstrap (scipy.stats.bootstrap) was timed on {SCRIPTED_RESAMPLES} resamples and counted"
            f" {RESAMPLES // SCRIPTED_RESAMPLES} times."
        ),
    ]
