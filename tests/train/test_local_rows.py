"""Prepared rows on the disk: shared, checked, bounded, and never half of them."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
import torch

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Catalog
from modelyard.datasets import Dataset
from modelyard.errors import DataError, MachineBusy, MachineFull
from modelyard.settings import Settings
from modelyard.storage import Store
from modelyard.train import TrainConfig, local_rows
from modelyard.train.assembly import RankSpec, assemble
from modelyard.train.local_rows import CHECKED_FILE, PARTIAL, LocalRows
from tests.train import runs
from tests.train.ranks import Ranks

FORK = multiprocessing.get_context("fork")
PARTS = [(np.full((3, 2), number, np.float32), np.arange(3)) for number in range(2)]


def made(rows: LocalRows, name: str = "some") -> torch.Tensor:
    return rows.split(name, 100, lambda: PARTS).features


def refuse() -> Iterator[tuple[np.ndarray, ...]]:
    raise AssertionError("they are there already")


def rows_of_a_rank(settings: Settings, spec: RankSpec) -> tuple[bytes, list[int], str]:
    """All training rows as a rank has them, and what its process has mapped."""
    train = assemble(spec, Catalog(Store(settings)), runs.CPU, lambda _: None, runs.local_rows(settings)).train
    found = train.batch(torch.arange(len(train)))
    return found.features.numpy().tobytes(), found.targets.tolist(), Path("/proc/self/maps").read_text()


def test_ranks_read_what_the_data_set_holds(
    alone: Ranks, settings: Settings, catalog: Catalog, dataset: ArtifactRef, config: TrainConfig, tmp_path: Path
):
    """Rows on the disk are those of the data set, bit for bit and in its order; the tensors are the files' own pages."""
    spec = RankSpec(dataset=dataset, config=config, checkpoints=f"{catalog.store.root}/tests/{uuid4().hex}")
    (found, classes, maps), *_ = alone.run(rows_of_a_rank, settings, spec)
    features, targets = Dataset.fetch(catalog, dataset, tmp_path, ["train"]).load("train")
    assert found == features.tobytes()
    assert classes == targets.tolist()
    assert f"{settings.data_cache_folder}/{dataset.digest}-train" in maps


def test_rows_are_made_once(tmp_path: Path):
    """Who comes later finds them, of whatever type and shape they were."""
    first = LocalRows(tmp_path, 10**6).split(
        "some", 100, lambda: [(*one, one[0][:, :1].astype(np.int64)) for one in PARTS]
    )
    again = LocalRows(tmp_path, 10**6).split("some", 100, refuse)
    assert first.features.tolist() == again.features.tolist() == [[0.0, 0.0]] * 3 + [[1.0, 1.0]] * 3
    assert again.targets.tolist() == [0, 1, 2, 0, 1, 2]
    assert again.teacher_features is not None
    assert again.teacher_features.tolist() == [[0]] * 3 + [[1]] * 3


@pytest.mark.parametrize("harm", ["flip", "cut", "delete"])
def test_damaged_rows_are_made_again(tmp_path: Path, harm: str, caplog: pytest.LogCaptureFixture):
    """A later group of ranks compares the files with their sha256, says what is wrong and mends it."""
    made(LocalRows(tmp_path, 10**6))
    victim = next((tmp_path / "some").glob("0-*"))
    if harm == "flip":
        victim.write_bytes(b"\1" + victim.read_bytes()[1:])
    elif harm == "cut":
        os.truncate(victim, 3)
    else:
        victim.unlink()
    (tmp_path / "some" / CHECKED_FILE).write_text("another group")
    assert made(LocalRows(tmp_path, 10**6)).tolist() == [[0.0, 0.0]] * 3 + [[1.0, 1.0]] * 3
    assert victim.name in caplog.text


def test_longest_unused_rows_go_first(tmp_path: Path):
    """The bound holds for all together; who still reads what went keeps it."""
    mapped = made(LocalRows(tmp_path, 10**6), "old")
    of_one = sum(path.stat().st_size for path in (tmp_path / "old").iterdir())
    rows = LocalRows(tmp_path, of_one + 150)  # one, and the hundred bytes that the next is said to take
    for name, used_at in [("newest", 3), ("middle", 2), ("old", 1)]:
        made(LocalRows(tmp_path, 10**6), name)
        os.utime(tmp_path / name, (used_at, used_at))
    made(rows, "wanted")
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"newest", "wanted"}
    assert mapped.tolist()[0] == [0.0, 0.0]


def test_what_is_asked_for_is_kept_whatever_its_size(tmp_path: Path):
    """A bound that is too small for anything costs the others their place, not this one."""
    made(LocalRows(tmp_path, 10**6), "other")
    assert len(made(LocalRows(tmp_path, 0), "wanted")) == 6
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"wanted"}


def test_a_full_disk_is_said_before_rows_are_written(tmp_path: Path):
    """With what they need and what there is, and nothing is left behind."""
    with pytest.raises(MachineFull, match=r"take about 1000000000.0 GB on the disk, and .* GB free; free some"):
        LocalRows(tmp_path, 10**6).split("some", 10**18, lambda: PARTS)
    assert not any(path.is_dir() for path in tmp_path.iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a small disk")
def test_a_disk_that_fills_up_is_an_error_with_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The estimate may be too low; the half-made rows do not stay on the full disk."""
    if os.system(f"mount -t tmpfs -o size=1m none {tmp_path}"):  # noqa: S605
        pytest.skip("this machine lets nobody mount")
    try:
        monkeypatch.setattr(local_rows, "SPARE_BYTES", 0)
        rows, large = LocalRows(tmp_path, 10**6), (np.zeros((10**6, 1), np.float32), np.zeros(10**6))
        with pytest.raises(MachineFull, match=f"the disk of {tmp_path} is full"):
            rows.split("some", 0, lambda: [large])
        assert shutil.disk_usage(tmp_path).free > 900_000
    finally:
        os.system(f"umount -l {tmp_path}")  # noqa: S605


def test_nothing_is_no_split(tmp_path: Path):
    """An empty split is an error, and no folder."""
    with pytest.raises(DataError, match="is empty"):
        LocalRows(tmp_path, 10**6).split("some", 0, list)
    assert not (tmp_path / "some").exists()


def _slow_parts(told: Connection) -> Iterator[tuple[np.ndarray, ...]]:
    yield PARTS[0]
    told.send("half")
    told.recv()
    yield PARTS[1]


def _make_slowly(folder: Path, told: Connection) -> None:
    LocalRows(folder, 10**6).split("some", 100, lambda: _slow_parts(told))


def test_one_makes_and_the_others_wait(tmp_path: Path):
    """Two processes that want the same rows make them once; who waits gives signs of life."""
    mine, theirs = FORK.Pipe()
    maker = FORK.Process(target=_make_slowly, args=(tmp_path, theirs))
    maker.start()
    assert mine.recv() == "half"
    signs: list[float] = []

    def sign() -> None:
        signs.append(time.monotonic())
        mine.send("go on")

    assert LocalRows(tmp_path, 10**6, sign).split("some", 100, refuse).targets.tolist() == [0, 1, 2, 0, 1, 2]
    assert signs
    maker.join(10)


def test_rows_of_a_killed_process_are_made_anew(tmp_path: Path):
    """Half-made rows are never taken for whole ones, and hold nobody up."""
    mine, theirs = FORK.Pipe()
    maker = FORK.Process(target=_make_slowly, args=(tmp_path, theirs))
    maker.start()
    assert mine.recv() == "half"
    assert maker.pid
    os.kill(maker.pid, signal.SIGKILL)
    maker.join(10)
    assert (tmp_path / f"some{PARTIAL}").exists()
    assert len(made(LocalRows(tmp_path, 10**6))) == 6


def test_a_hung_maker_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Waiting has a bound: so long without a byte written."""
    mine, theirs = FORK.Pipe()
    maker = FORK.Process(target=_make_slowly, args=(tmp_path, theirs))
    maker.start()
    assert mine.recv() == "half"
    try:
        monkeypatch.setattr(local_rows, "STALL_SECONDS", 0.2)
        with pytest.raises(MachineBusy, match=r"has not come on for 0\.2 s"):
            made(LocalRows(tmp_path, 10**6))
    finally:
        maker.kill()
        maker.join(10)


def _check_slowly(folder: Path, told: Connection) -> None:
    signs: list[bool] = []

    def sign() -> None:
        if not signs:
            told.send("checking")
        signs.append(True)
        time.sleep(0.1)

    LocalRows(folder, 10**6, sign).split("some", 100, refuse)


def test_a_long_check_is_no_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Comparing large files takes longer than the bound: who waits sees that it comes on."""
    made(LocalRows(tmp_path, 10**6))
    (tmp_path / "some" / CHECKED_FILE).write_text("another group")
    monkeypatch.setattr(local_rows, "CHUNK_BYTES", 8)
    monkeypatch.setattr(local_rows, "SIGN_SECONDS", 0.0)
    mine, theirs = FORK.Pipe()
    checker = FORK.Process(target=_check_slowly, args=(tmp_path, theirs))
    checker.start()
    assert mine.recv() == "checking"
    monkeypatch.setattr(local_rows, "STALL_SECONDS", 0.5)
    began = time.monotonic()
    LocalRows(tmp_path, 10**6).split("some", 100, refuse)
    assert time.monotonic() - began > 0.6, "it was over before the bound"
    checker.join(10)
    assert checker.exitcode == 0
