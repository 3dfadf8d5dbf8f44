"""Partitions prepared by other processes: the same data set, and a killed one costs its own partition alone."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pandas as pd
import psutil
import pytest
from pydantic import ValidationError

from modelyard.catalog import Catalog, Product
from modelyard.errors import ConfigError, DataError, MissingExtra, PermanentError, StoreUnavailable, WorkerLost, as_told
from modelyard.preprocess import PreprocessConfig, preprocess, snapshot
from modelyard.preprocess.processes import WorkerProcess, division, thread_limits
from modelyard.preprocess.sections import WorkersConfig
from modelyard.storage import Store
from tests.workbench import ORIGIN, blobs, csv_bytes, upload

CONFIG: dict[str, Any] = {"target": "kind", "features": ["a", "b"], "partition_bytes": 1}
NUM_FILES = 6
STEP = "tests.preprocess.test_workers:slowly"


def slowly(rows: pd.DataFrame) -> pd.DataFrame:
    """A step that takes its time, so that its process can be killed in the midst of it, and says that it was here."""
    with Path(os.environ["TEST_CALLS"]).open("a") as calls:
        calls.write(f"{os.getpid()} {rows['a'].iloc[0]}\n")
    time.sleep(1.0)
    return rows


def files() -> dict[str, bytes]:
    """Files that no other test has; each shares rows with the one before."""
    shift = uuid4().int % 10**6
    frames = [pd.concat([blobs(60, shift + at), blobs(60, shift + at - 1)[:10]]) for at in range(NUM_FILES)]
    return {f"{number}.csv": csv_bytes(frame) for number, frame in enumerate(frames)}


@pytest.fixture
def bucket(store: Store) -> Catalog:
    """The installation's own catalog: other processes know no other."""
    return Catalog(store)


def made(catalog: Catalog, bodies: Mapping[str, bytes], **workers: Any) -> Product:
    """A data set of files that lie in a fresh place, so that only bytes and names are the same."""
    source = snapshot(catalog, upload(catalog.store, bodies), ORIGIN)
    return preprocess(catalog, source.ref, PreprocessConfig.model_validate(CONFIG | workers), ORIGIN)


def prepared(catalog: Catalog) -> set[str]:
    """Everything that was prepared or assembled, by whomever."""
    kinds = [f"{catalog.store.root}/artifacts/{kind}" for kind in ("partition", "dataset")]
    return {info.uri for kind in kinds for info in catalog.store.list(kind)}


@pytest.mark.parametrize("kind", ["processes", pytest.param("dask", marks=pytest.mark.soak)])
def test_whoever_prepares_the_data_set_is_the_same(bucket: Catalog, kind: str):
    """The digest of one made in this process; who worked is no part of it."""
    bodies, others = files(), prepared(bucket)
    here = made(bucket, bodies)
    bucket.store.delete(sorted(prepared(bucket) - others))  # so that it is made anew
    there = made(bucket, bodies, workers={"kind": kind})
    assert there.manifest.provenance.measurements == {"partitions": NUM_FILES, "partitions_found": 0}
    assert there.ref.digest == here.ref.digest
    assert made(bucket, bodies, workers={"kind": kind, "count": 3}).reused


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["processes", "dask"])
def test_a_killed_worker_costs_its_partition_alone(
    bucket: Catalog, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """`kill -9` in the middle of a partition: another process does that one again, and everything else is done once."""
    calls = tmp_path / "calls"
    monkeypatch.setenv("TEST_CALLS", str(calls))
    killer = threading.Thread(target=_kill_first, args=(calls,), daemon=True)
    killer.start()
    product = made(bucket, files(), steps=[STEP], workers={"kind": kind, "memory_bytes": 2**29})
    killer.join(30)
    assert product.manifest.content.facts["read"] == NUM_FILES * 70
    times = Counter(line.split()[1] for line in calls.read_text().splitlines())
    assert sorted(times.values()) == [1] * (NUM_FILES - 1) + [2]


@pytest.mark.soak
def test_workers_that_keep_dying_are_said(bucket: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """After three tries at one partition."""
    monkeypatch.setenv("TEST_CALLS", str(tmp_path / "calls"))
    stop = threading.Event()
    killer = threading.Thread(target=_kill_all, args=(stop,), daemon=True)
    killer.start()
    try:
        with pytest.raises(WorkerLost, match=r"\d\.csv could not be prepared: process \d+ (died|is gone)"):
            made(bucket, files(), steps=[STEP], workers={"kind": "processes", "count": 1})
    finally:
        stop.set()
        killer.join(10)


def test_what_a_worker_meets_is_what_one_would_have_met_here(bucket: Catalog):
    """The class and the sentence of a file that cannot be read; the others are kept all the same."""
    bodies = files() | {"5.csv": b"a,b\n1,2\n"}
    with pytest.raises(DataError, match=r"5\.csv: column 'kind' is missing"):
        made(bucket, bodies, workers={"kind": "processes"})


def test_a_slow_worker_is_given_up():
    """Every wait has a bound."""
    with WorkerProcess(thread_limits(1)) as worker, pytest.raises(WorkerLost, match=r"longer than 0\.01 s"):
        worker.carry_out({"preparation": {}, "origin": {}}, 0.01)


def test_cores_and_memory_are_divided():
    """No more workers than partitions, or than there is memory for; the cores are shared among them."""
    cores = len(psutil.Process().cpu_affinity())
    assert division(WorkersConfig(kind="processes", count=64), 1) == (1, cores)
    count, threads = division(WorkersConfig(kind="processes", count=64, memory_bytes=2**29), 10**6)
    assert threads == max(1, cores // count)
    assert division(WorkersConfig(kind="processes", count=64, memory_bytes=2**60), 9) == (1, cores)
    assert set(thread_limits(3).values()) == {"3"}


def test_a_wrong_choice_of_workers_is_said(bucket: Catalog, monkeypatch: pytest.MonkeyPatch):
    """A kind that is not known, an address that Dask does not know, Dask that is not installed."""
    for wrong in ({"kind": "dsk"}, {"kind": "dask", "address": "here"}, {"kind": "processes", "address": "tcp://a:1"}):
        with pytest.raises(ValidationError, match="workers"):
            PreprocessConfig.model_validate(CONFIG | {"workers": wrong})
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MissingExtra, match=r"kind dask needs .*modelyard\[dask\]"):
        made(bucket, files(), workers={"kind": "dask"})


def test_errors_keep_their_class_on_the_way():
    """Transient stays transient; one that cannot be made of its sentence alone stays permanent."""
    assert isinstance(as_told("StoreUnavailable", "gone"), StoreUnavailable)
    told = as_told("ConfigError", "preprocess.read: wrong: very")
    assert isinstance(told, ConfigError)
    assert (told.field, told.problem) == ("preprocess.read", "wrong: very")
    assert type(as_told("DigestMismatch", "a: b")) is PermanentError
    assert as_told("ValueError", "a") is None


def _kill_first(calls: Path) -> None:
    """The first process other than this one that says it is at a partition."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for line in calls.read_text().splitlines() if calls.exists() else ():
            if int(line.split()[0]) != os.getpid():
                os.kill(int(line.split()[0]), signal.SIGKILL)
                return
        time.sleep(0.02)


def _kill_all(stop: threading.Event) -> None:
    while not stop.is_set():
        for child in psutil.Process().children():
            with suppress(psutil.Error):
                if "modelyard.preprocess.worker" in " ".join(child.cmdline()):
                    child.kill()
        time.sleep(0.05)
