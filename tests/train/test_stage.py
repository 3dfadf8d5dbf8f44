"""Training through torch's real launcher, with real ranks, killed for real."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from torch import nn

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Catalog, Origin
from modelyard.errors import ConfigError, NonFiniteLoss, RankLost, TrainingFailed
from modelyard.models import CnnConfig
from modelyard.preprocess import PreprocessConfig, preprocess, snapshot
from modelyard.settings import Settings
from modelyard.storage import Store
from modelyard.train import CheckpointConfig, RankEvent, StopConfig, TrainConfig, train
from modelyard.train.costs import try_out
from modelyard.train.launch import _rank_error
from modelyard.train.rank_checks import require_outputs
from modelyard.train.sections import ScheduleConfig
from tests.train.conftest import make_dataset
from tests.workbench import blobs, parquet_bytes, upload

KILL_BOUND_SECONDS = 10
TRAINING_SCRIPT = (
    "import sys; from modelyard.train import *; from modelyard.catalog import *; from modelyard.storage import Store;"
    "from modelyard.artifacts import ArtifactRef; from modelyard.settings import load_settings;"
    "train(Catalog(Store(load_settings())), ArtifactRef.model_validate_json(sys.argv[1]),"
    " TrainConfig.model_validate_json(sys.argv[2]), Origin(), lambda event: print(event.kind, flush=True))"
)


def test_ended_and_killed_training_goes_on_bit_for_bit(
    settings: Settings, catalog: Catalog, dataset: ArtifactRef, config: TrainConfig
):
    """SIGTERM of the launcher, as a spot machine sends it, saves the very step; `kill -9` of the process that trains
    ends launcher and ranks; the third run goes on from there, is restarted by the launcher after `kill -9` of a rank, and
    publishes the very digest that an unbroken run publishes in another bucket."""
    longer = config.model_copy(
        update={"batch_size": 8, "max_epochs": 5, "checkpoint": CheckpointConfig(every_steps=60)}
    )
    told: list[RankEvent] = []
    with pytest.raises(RankLost):
        train(catalog, dataset, longer, Origin(), _end_launcher_at_first_checkpoint(told))
    preempted = next(event for event in told if event.error == "Preempted")
    assert "is saved" in preempted.message

    family = _killed_while_training(dataset, longer)
    _, alive = psutil.wait_procs(family, timeout=KILL_BOUND_SECONDS)
    assert not alive

    events: list[RankEvent] = []
    resumed = train(catalog, dataset, longer, Origin(), _kill_a_rank_at_first_checkpoint(events))
    begun = [event.values["resumed_steps"] for event in events if event.kind == "started"]
    assert len(begun) >= 2
    assert preempted.step < begun[0] < begun[-1]

    elsewhere = Catalog(Store(settings.model_copy(update={"bucket": "modelyard-twin"})))
    elsewhere.store.control.create_bucket()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODELYARD_BUCKET", "modelyard-twin")
        unbroken = train(elsewhere, make_dataset(elsewhere), longer, Origin())
    assert not unbroken.reused
    assert unbroken.ref.digest == resumed.ref.digest
    assert unbroken.manifest.provenance.measurements["ranks"]["devices"].startswith("2 x cpu (")


@pytest.mark.soak
def test_a_rank_that_hangs_is_named_and_ended(catalog: Catalog, dataset: ArtifactRef, config: TrainConfig):
    """A stopped rank cannot even notice that everybody has left: after `silence_seconds` the group is given up with its
    number and its step, and with where the other one waits for it; no rank lives on."""
    ranks: list[psutil.Process] = []

    def stop_one(event: RankEvent) -> None:
        if event.kind == "checkpoint" and not ranks:
            ranks.extend(child for child in psutil.Process().children(recursive=True) if is_rank(child))
            max(ranks, key=_number).suspend()

    quiet = config.model_copy(update={"seed": 9, "batch_size": 8, "max_epochs": 5, "silence_seconds": 25})
    words = (
        r"no step was reported for 25 s, and the group was ended; silent: rank 1 was last heard \d+ s ago, at step \d+ in"
        r" .*; not coming on: rank 0 has stood for \d+ s at step \d+ in .* below \w+ \(train/\w+\.py:\d+\)"
    )
    with pytest.raises(RankLost, match=words):
        train(catalog, dataset, quiet, Origin(), stop_one)
    _, alive = psutil.wait_procs(ranks, timeout=KILL_BOUND_SECONDS)
    for rank in alive:
        rank.kill()
    assert len(ranks) == 2
    assert not alive


def _number(rank: psutil.Process) -> int:
    return int(rank.environ()["RANK"])


def _end_launcher_at_first_checkpoint(told: list[RankEvent]) -> Callable[[RankEvent], None]:
    def on_event(event: RankEvent) -> None:
        if event.kind == "checkpoint" and not any(before.kind == "checkpoint" for before in told):
            _descendant(psutil.Process(), "modelyard.train.launcher").send_signal(signal.SIGTERM)
        told.append(event)

    return on_event


def _kill_a_rank_at_first_checkpoint(told: list[RankEvent]) -> Callable[[RankEvent], None]:
    def on_event(event: RankEvent) -> None:
        if event.kind == "checkpoint" and not any(before.kind == "checkpoint" for before in told):
            ranks = [child for child in psutil.Process().children(recursive=True) if is_rank(child)]
            os.kill(ranks[-1].pid, signal.SIGKILL)
        told.append(event)

    return on_event


def _killed_while_training(dataset: ArtifactRef, config: TrainConfig) -> list[psutil.Process]:
    """Train in a process of its own and kill that at its second checkpoint; what it had started."""
    command = [sys.executable, "-c", TRAINING_SCRIPT, dataset.model_dump_json(), config.model_dump_json()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert list(itertools.islice((line for line in process.stdout if line == "checkpoint\n"), 2))
        family = psutil.Process(process.pid).children(recursive=True)
        assert sum(is_rank(member) for member in family) == 2
        process.send_signal(signal.SIGKILL)
    return family


@pytest.mark.parametrize(("update", "words"), [
    ({"stop": StopConfig(metric="acuracy")}, r"train\.stop\.metric: .*did you mean 'accuracy'\? There are accuracy, macro_f1"),
    ({"stop": StopConfig(max_tokens=9)}, r"train\.stop\.max_tokens: rows of this data set have no tokens"),
    ({"schedule": ScheduleConfig(warmup_steps=9), "max_epochs": 1}, r"warmup_steps: 9 steps of warm-up, and .* has \d"),
    ({"ranks": 64, "batch_size": 10_000}, r"train\.ranks: 64 ranks for \d+ training rows"),
    ({"device": "mtia"}, r"train\.device: there is no 'mtia': torch [\w.+]+ finds .* here, and \d+ processors; take auto"),
    ({"model": CnnConfig(kind="cnn", image=(8, 8))}, r"train\.model\.image: 8 x 8 .* are 64 inputs a row, the data set gives 2"),
])  # fmt: skip
def test_what_cannot_work_starts_no_rank(catalog: Catalog, config: TrainConfig, update: dict[str, object], words: str):
    """The stop metric must be one the task has, and there must be a row for each rank; said before a process starts."""
    few = upload(catalog.store, {"few.parquet": parquet_bytes(blobs(60))})
    source = snapshot(catalog, f"{few}/*.parquet", Origin())
    small = preprocess(catalog, source.ref, PreprocessConfig(target="kind"), Origin()).ref
    events: list[RankEvent] = []
    with pytest.raises(ConfigError, match=words):
        train(catalog, small, config.model_copy(update=update), Origin(), events.append)
    assert not events


def test_error_of_the_users_own_network_is_named(
    catalog: Catalog, dataset: ArtifactRef, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """What a custom factory raises inside a rank reaches the caller, with the rank, and is not tried again."""
    (tmp_path / "broken_network.py").write_text("def build(**sizes):\n    raise ValueError('no such layer')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    custom = TrainConfig.model_validate(
        {**config.model_dump(), "model": {"kind": "custom", "factory": "broken_network:build"}, "ranks": 1}
    )
    began, events = time.monotonic(), list[RankEvent]()
    with pytest.raises(TrainingFailed, match="ValueError: no such layer"):
        train(catalog, dataset, custom, Origin(), events.append)
    assert time.monotonic() - began < custom.silence_seconds
    assert not any(event.kind in ("failed", "started") for event in events)


def _descendant(process: psutil.Process, word: str) -> psutil.Process:
    return next(child for child in process.children(recursive=True) if word in child.cmdline())


def is_rank(process: psutil.Process) -> bool:
    try:
        words = process.cmdline()
    except psutil.NoSuchProcess:
        return False
    return "modelyard.train.worker" in words and "modelyard.train.launcher" not in words


def test_network_that_gives_other_outputs_than_the_target_has_is_refused():
    """Labels would lie out of range: said before the first step, with both shapes, and it reaches the caller as the
    error of that preset key."""
    rows = torch.zeros(3, 4)
    with pytest.raises(ConfigError) as caught:
        require_outputs(try_out(nn.Linear(4, 8), rows).shape, rows, 10)
    sentence = "train.model: the network's outputs are (n, 8), the target needs (n, 10)"
    assert str(caught.value) == sentence
    arrived = _rank_error(RankEvent(kind="failed", error="ConfigError", message=sentence, permanent=True))
    assert isinstance(arrived, ConfigError)
    assert (str(arrived), arrived.field) == (sentence, "train.model")


def test_a_permanent_error_of_a_rank_arrives_as_what_it_is():
    """Its class and sentence; what is none of ours with its name and rank."""
    lost = _rank_error(RankEvent(kind="failed", error="NonFiniteLoss", message="at step 3", permanent=True))
    assert (type(lost), str(lost)) == (NonFiniteLoss, "at step 3")
    other = _rank_error(RankEvent(kind="failed", rank=1, error="KeyError", message="'x'", permanent=True))
    assert (type(other), str(other)) == (TrainingFailed, "rank 1: KeyError: 'x'")
