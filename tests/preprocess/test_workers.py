"""Partitions prepared by other processes: the same data set, and a killed one costs its own partition alone."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
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
from modelyard.errors import (
    ClusterUnavailable,
    ConfigError,
    DataError,
    MissingExtra,
    PermanentError,
    StoreUnavailable,
    WorkerLost,
    as_told,
)
from modelyard.preprocess import PreprocessConfig, preprocess, snapshot
from modelyard.preprocess.crews import shares_of
from modelyard.preprocess.partitions import Partition
from modelyard.preprocess.prepare import Preparation
from modelyard.preprocess.processes import WorkerProcess, division, thread_limits
from modelyard.preprocess.sections import WorkersConfig
from modelyard.preprocess.snapshot import Source
from modelyard.storage import Store
from tests.conftest import alive, free_ports
from tests.rayclusters import ray_cluster
from tests.workbench import ORIGIN, blobs, csv_bytes, upload

CONFIG: dict[str, Any] = {"target": "kind", "features": ["a", "b"], "partition_bytes": 1}
NUM_FILES = 6
STEP = "tests.preprocess.test_workers:slowly"
ASKING_SCRIPT = """
import sys
from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Catalog, Origin
from modelyard.preprocess import PreprocessConfig, preprocess
from modelyard.settings import load_settings
from modelyard.storage import Store
ref, config = sys.argv[1:]
catalog = Catalog(Store(load_settings()))
preprocess(catalog, ArtifactRef.model_validate_json(ref), PreprocessConfig.model_validate_json(config), Origin())
"""


def slowly(rows: pd.DataFrame) -> pd.DataFrame:
    """A step that takes its time, so that its process can be killed in the midst of it, and says that it was here, with how
    many threads."""
    with Path(os.environ["TEST_CALLS"]).open("a") as calls:
        calls.write(f"{os.getpid()} {rows['a'].iloc[0]} {os.environ.get('POLARS_MAX_THREADS')}\n")
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


@pytest.mark.parametrize(
    "kind", ["processes", *(pytest.param(kind, marks=pytest.mark.soak) for kind in ("dask", "ray"))]
)
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
@pytest.mark.parametrize("kind", ["processes", "dask", "ray"])
def test_a_killed_worker_costs_its_partition_alone(
    bucket: Catalog, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """`kill -9` in the middle of a partition: another process does that one again, and everything else is done once. The cores
    were divided among them."""
    calls = tmp_path / "calls"
    monkeypatch.setenv("TEST_CALLS", str(calls))
    killer = threading.Thread(target=_kill_first, args=(calls,), daemon=True)
    killer.start()
    product = made(bucket, files(), steps=[STEP], workers={"kind": kind, "memory_bytes": 2**29})
    killer.join(30)
    assert product.manifest.content.facts["read"] == NUM_FILES * 70
    said = [line.split() for line in calls.read_text().splitlines()]
    assert sorted(Counter(row for _, row, _ in said).values()) == [1] * (NUM_FILES - 1) + [2]
    cores = len(psutil.Process().cpu_affinity())
    assert {threads for process, _, threads in said if int(process) != os.getpid()} == {str(max(1, cores // 2))}


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
    """A kind that is not known, an address of another kind of cluster, one that is not installed."""
    for wrong, words in (
        ({"kind": "dsk"}, "workers.kind"),
        ({"kind": "dask", "address": "here"}, "'here' is none of a Dask scheduler: tcp://host:8786"),
        ({"kind": "processes", "address": "tcp://a:1"}, "kind must be dask or ray"),
        ({"kind": "ray", "address": "tcp://a:1"}, "neither host:port nor 'auto'"),
        ({"kind": "ray", "address": "ray://a:10001"}, "Ray's client server"),
    ):
        with pytest.raises(ValidationError, match=words):
            PreprocessConfig.model_validate(CONFIG | {"workers": wrong})
    for kind, package in (("dask", "distributed"), ("ray", "ray")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(MissingExtra, match=rf"kind {kind} needs .*modelyard\[{kind}\]"):
            made(bucket, files(), workers={"kind": kind})


def test_a_ray_cluster_that_is_not_there_is_said(bucket: Catalog):
    """At once where nothing listens."""
    (port,) = free_ports(1)
    with pytest.raises(ClusterUnavailable, match=rf"no Ray cluster answers at 127\.0\.0\.1:{port}: .*ray start --head"):
        made(bucket, files(), workers={"kind": "ray", "address": f"127.0.0.1:{port}"})


@pytest.mark.soak
@pytest.mark.timeout(400)
def test_a_ray_cluster_is_used_as_it_is(bucket: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A killed node costs what it was at; what fits on no node is refused, not waited for; and an open port that is no Ray is
    given up in time."""
    calls = tmp_path / "calls"
    monkeypatch.setenv("TEST_CALLS", str(calls))
    with ray_cluster(1, 1) as cluster:
        there: dict[str, Any] = {"kind": "ray", "address": cluster.address, "memory_bytes": 2**29}
        for much, words in (({"cpus": 64}, r"64 CPU \(cpus\)"), ({"memory_bytes": 2**50}, r"1073741824 MiB")):
            with pytest.raises(ConfigError, match=words):
                made(bucket, files(), workers=there | much)
        killer = threading.Thread(target=_kill_node, args=(cluster, calls), daemon=True)
        killer.start()
        product = made(bucket, files(), steps=[STEP], workers=there)
        killer.join(30)
    assert product.manifest.content.facts["read"] == NUM_FILES * 70
    times = Counter(line.split()[1] for line in calls.read_text().splitlines())
    assert sorted(times.values()) == [1] * (NUM_FILES - 1) + [2]

    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        with pytest.raises(ClusterUnavailable, match=rf"{address} has not taken this process in within 20 s"):
            made(bucket, files(), workers={"kind": "ray", "address": address})


@pytest.mark.soak
def test_a_killed_run_leaves_nothing_in_ray(bucket: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`kill -9` of the process that asks: what worked for it, and the cluster that it had for the run, are gone soon. The
    cluster's secret is not left in the user's home, where other clusters would be asked for it."""
    calls, home = tmp_path / "calls", tmp_path / "home"
    monkeypatch.setenv("TEST_CALLS", str(calls))
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    source = snapshot(bucket, upload(bucket.store, files()), ORIGIN)
    config = PreprocessConfig.model_validate(
        CONFIG | {"steps": [STEP], "workers": {"kind": "ray", "memory_bytes": 2**29}}
    )
    command = [sys.executable, "-c", ASKING_SCRIPT, source.ref.model_dump_json(), config.model_dump_json()]
    with subprocess.Popen(command) as asking:
        deadline = time.monotonic() + 60
        while str(asking.pid) == _last_caller(calls, asking.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        below = psutil.Process(asking.pid).children(recursive=True)
        assert any("raylet" in process.name() for process in below)
        asking.kill()
    _, left = psutil.wait_procs(below, timeout=20)
    assert not alive(left)
    assert not (home / ".ray").exists()


def test_shares_are_few_and_hold_all():
    """In their order, with their files for people to see."""
    config = PreprocessConfig.model_validate(CONFIG)
    preparations = [
        Preparation(
            folder="s3://b/f",
            partition=Partition(sources=[Source(name=f"{at}.csv", size=1, sha256="0" * 64)]),
            config=config,
            plan=None,
            code_version="",
            key_fingerprint=None,
        )
        for at in range(120)
    ]
    assert shares_of([]) == []
    assert [share.name for share in shares_of(preparations[:2])] == [
        "partition 1 of 2: 0.csv",
        "partition 2 of 2: 1.csv",
    ]
    shares = shares_of(preparations)
    assert [one for share in shares for one in share.preparations] == preparations
    assert {len(share.preparations) for share in shares} == {2, 3}
    assert shares[-1].name == "partition 118 to 120 of 120: 117.csv, 118.csv, 119.csv"


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


def _last_caller(calls: Path, otherwise: int) -> str:
    """Who said last that it is at a partition."""
    lines = calls.read_text().splitlines() if calls.exists() else []
    return lines[-1].split()[0] if lines else str(otherwise)


def _kill_node(cluster: Any, calls: Path) -> None:
    """The node whose worker is the first other than this process that says it is at a partition."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if (caller := int(_last_caller(calls, os.getpid()))) != os.getpid():
            raylet = psutil.Process(caller).ppid()
            node = next(one for one in cluster.worker_nodes if one.all_processes["raylet"][0].process.pid == raylet)
            cluster.remove_node(node, allow_graceful=False)
            return
        time.sleep(0.02)


def _kill_all(stop: threading.Event) -> None:
    while not stop.is_set():
        for child in psutil.Process().children():
            with suppress(psutil.Error):
                if "modelyard.preprocess.worker" in " ".join(child.cmdline()):
                    child.kill()
        time.sleep(0.05)
