"""Training through torch's real launcher, with real ranks, killed for real."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Catalog, Origin
from modelyard.errors import NonFiniteLoss, TargetNotReached, TrainingFailed
from modelyard.models import MlpConfig
from modelyard.settings import Settings
from modelyard.storage import Store
from modelyard.train import OptimizerConfig, RankEvent, TrainConfig, train
from tests.train.conftest import make_dataset

KILL_BOUND_SECONDS = 10


def history(catalog: Catalog, ref: ArtifactRef) -> list[dict[str, float]]:
    return json.loads(catalog.read(ref, "history.json"))


def test_two_ranks_follow_the_loss_curve_of_one(catalog: Catalog, dataset: ArtifactRef, config: TrainConfig):
    """A step's gradient is the mean over the global batch, however its rows fall on the ranks (no dropout here)."""
    plain = config.model_copy(update={"model": MlpConfig(dropout=0.0), "batch_size": 63, "ranks": 1})
    alone = train(catalog, dataset, plain, Origin())
    shared = train(catalog, dataset, plain.model_copy(update={"ranks": 2}), Origin())
    assert alone.ref.digest != shared.ref.digest
    for one, two in zip(history(catalog, alone.ref), history(catalog, shared.ref), strict=True):
        assert two["train_loss"] == pytest.approx(one["train_loss"], rel=1e-5)


def test_killed_process_leaves_no_rank_and_its_work_goes_on_bit_for_bit(
    settings: Settings, catalog: Catalog, dataset: ArtifactRef, config: TrainConfig
):
    """`kill -9` of the process that trains ends launcher and ranks; the next run goes on from the last checkpoint and
    publishes the very digest that an unbroken run publishes in another bucket."""
    longer = config.model_copy(update={"max_epochs": 40})
    script = (
        "import sys; from modelyard.train import *; from modelyard.catalog import *; from modelyard.storage import Store;"
        "from modelyard.artifacts import ArtifactRef; from modelyard.settings import load_settings;"
        "train(Catalog(Store(load_settings())), ArtifactRef.model_validate_json(sys.argv[1]),"
        " TrainConfig.model_validate_json(sys.argv[2]), Origin(), lambda event: print(event.kind, event.epoch, flush=True))"
    )
    command = [sys.executable, "-c", script, dataset.model_dump_json(), longer.model_dump_json()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "checkpoint 3\n" in process.stdout
        family = psutil.Process(process.pid).children(recursive=True)
        assert sum(_is_rank(member) for member in family) == 2
        process.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(family, timeout=KILL_BOUND_SECONDS)
    assert not alive

    events: list[RankEvent] = []
    resumed = train(catalog, dataset, longer, Origin(), events.append)
    assert next(event for event in events if event.kind == "started").values["resumed_epochs"] >= 3

    elsewhere = Catalog(Store(settings.model_copy(update={"bucket": "modelyard-twin"})))
    elsewhere.store.control.create_bucket()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODELYARD_BUCKET", "modelyard-twin")
        unbroken = train(elsewhere, make_dataset(elsewhere), longer, Origin())
    assert not unbroken.reused
    assert unbroken.ref.digest == resumed.ref.digest


def test_group_outlives_a_killed_rank(catalog: Catalog, dataset: ArtifactRef, config: TrainConfig):
    """A rank that is killed takes its step with it, not the training: the launcher restarts the group, and it goes on."""
    started = 0

    def kill_once(event: RankEvent) -> None:
        nonlocal started
        started += event.kind == "started"
        if event.kind == "checkpoint" and event.epoch == 2 and started == 1:
            ranks = [child for child in psutil.Process().children(recursive=True) if _is_rank(child)]
            os.kill(ranks[-1].pid, signal.SIGKILL)

    seeded = config.model_copy(update={"seed": 7, "max_epochs": 60})
    product = train(catalog, dataset, seeded, Origin(), kill_once)
    assert started >= 2
    assert product.manifest.content.facts["epochs"] == 60


def test_hopeless_training_is_refused_at_once_with_the_reason(
    catalog: Catalog, dataset: ArtifactRef, config: TrainConfig
):
    """A loss that leaves the finite numbers is permanent: no restart, and the sentence names the knob."""
    wild = config.model_copy(update={"optimizer": OptimizerConfig(name="sgd", learning_rate=100), "max_epochs": 30})
    with pytest.raises(NonFiniteLoss, match=r"train\.optimizer\.learning_rate"):
        train(catalog, dataset, wild, Origin())


def test_missed_target_fails_clearly(catalog: Catalog, dataset: ArtifactRef, config: TrainConfig):
    """The epoch limit before the target is an error that says how far it got; nothing is published."""
    ambitious = config.model_copy(update={"target": 0.9999, "ranks": 1})
    with pytest.raises(TargetNotReached, match=r"accuracy reached 0\.\d+ .* train\.target is 0\.9999"):
        train(catalog, dataset, ambitious, Origin())


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
    began = time.monotonic()
    with pytest.raises(TrainingFailed, match="ValueError: no such layer"):
        train(catalog, dataset, custom, Origin())
    assert time.monotonic() - began < custom.silence_seconds


def test_found_model_starts_no_rank(catalog: Catalog, dataset: ArtifactRef, config: TrainConfig):
    """The same work is found, whatever its operational settings, and no process is started for it."""
    first = train(catalog, dataset, config, Origin())
    events: list[RankEvent] = []
    again = train(catalog, dataset, config.model_copy(update={"max_restarts": 1}), Origin(), events.append)
    assert again.reused
    assert again.ref == first.ref
    assert not events


def test_published_weights_are_those_of_the_best_epoch(catalog: Catalog, dataset: ArtifactRef, config: TrainConfig,
                                                       tmp_path: Path):  # fmt: skip
    """The artifact's network scores on the validation split what the manifest says."""
    import torch

    from modelyard.datasets import Dataset
    from modelyard.models.build import load_model

    product = train(catalog, dataset, config, Origin())
    catalog.fetch(product.ref, tmp_path / "model")
    features, targets = Dataset.fetch(catalog, dataset, tmp_path / "data", ["validation"]).load("validation")
    with torch.no_grad():
        predicted = load_model(tmp_path / "model")(torch.from_numpy(features)).argmax(1).numpy()
    assert np.mean(predicted == targets) == pytest.approx(product.manifest.content.facts["metrics"]["accuracy"])


def _is_rank(process: psutil.Process) -> bool:
    try:
        words = process.cmdline()
    except psutil.NoSuchProcess:
        return False
    return "modelyard.train.worker" in words and "modelyard.train.launcher" not in words
