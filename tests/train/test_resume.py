"""Where a training goes on, and that it becomes what it would have been."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from torch import nn

from modelyard.errors import MachineFull, NotFound, Preempted, StoreUnavailable, TrainingTakenOver
from modelyard.models import MlpConfig
from modelyard.settings import Settings
from modelyard.storage import Store
from modelyard.train import CheckpointConfig, OptimizerConfig, RankEvent, TrainConfig
from modelyard.train.checkpoints import CheckpointPointer, Checkpoints, kept_pointers
from tests.fronts import front
from tests.train import runs
from tests.train.ranks import Ranks

# Everything that a checkpoint has to carry: dropout, momentum, a scheduled rate, an average, a plateau, a short last batch.
FULL = TrainConfig.model_validate(
    {
        **runs.PLAIN.model_dump(exclude={"schedule", "ema_decay", "clip_norm"}),
        "optimizer": {"name": "adamw", "learning_rate": 0.01},
        "schedule": {"name": "cosine", "warmup_steps": 3},
        "ema_decay": 0.9,
        "clip_norm": 1.0,
    }
)


def interrupted(settings: Settings, folder: str, config: TrainConfig, at_step: int) -> tuple[int, list[RankEvent]]:
    """Ask a training to end after a step, as SIGTERM does; the step it saved."""
    events: list[RankEvent] = []
    made = runs.trainer(settings, folder, config, events.append)
    runs.stop_after(made, at_step)
    with pytest.raises(Preempted, match="is saved"):
        made.fit()
    return made.progress.step, events


def assert_same(one: tuple[Any, Any], other: tuple[Any, Any]) -> None:
    """The same validations and the same weights, to the bit."""
    assert one[0] == other[0]
    for name, weight in one[1].items():
        np.testing.assert_array_equal(weight, other[1][name], err_msg=name)


@pytest.mark.parametrize(
    "optimizer",
    ["sgd", "adamw", "muon", *(pytest.param(name, marks=pytest.mark.soak) for name in ("adagrad", "rmsprop", "adam"))],
)
def test_resumed_in_mid_epoch_equals_unbroken(alone: Ranks, settings: Settings, folder: str, optimizer: str):
    """Stopped at a step that ends no epoch, in the middle of dropout, warm-up and averages: the same bits as undisturbed."""
    own = OptimizerConfig(name=optimizer, learning_rate=0.01, momentum=0.9)
    config = FULL.model_copy(update={"optimizer": own, "max_epochs": 2})
    ((step, _),) = alone.run(interrupted, settings, f"{folder}/a", config, 7)
    assert step == 7
    (resumed,) = alone.run(runs.fitted, settings, f"{folder}/a", config)
    (unbroken,) = alone.run(runs.fitted, settings, f"{folder}/b", config)
    assert_same(resumed, unbroken)


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp", marks=pytest.mark.soak)])
def test_two_ranks_resume_to_the_bit(pair: Ranks, settings: Settings, folder: str, strategy: str):
    """Each rank's own random streams and sums are restored as well, and shards of fsdp find their places."""
    config = FULL.model_copy(update={"ranks": 2, "strategy": strategy})
    steps = {step for step, _ in pair.run(interrupted, settings, f"{folder}/a", config, 17)}
    assert steps == {17}
    assert_same(pair.run(runs.fitted, settings, f"{folder}/a", config)[0],
                pair.run(runs.fitted, settings, f"{folder}/b", config)[0])  # fmt: skip


def normed(settings: Settings, folder: str, config: TrainConfig, at_step: int | None) -> Any:
    """A training of a network with running statistics, asked to end after a step or left alone."""
    torch.manual_seed(0)
    layers = [nn.Linear(runs.WIDTH, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, runs.CLASSES)]
    made = runs.trainer(settings, folder, config, network=nn.Sequential(*layers))
    if at_step is None:
        made.fit()
        return made.progress.validations, {name: value.numpy() for name, value in runs.weights(made).items()}
    while made.progress.step < at_step:
        made._train_steps()
    made._save()
    made._saver.wait()
    return None


def test_running_statistics_resume_to_the_bit(pair: Ranks, settings: Settings, folder: str):
    """Ranks see different rows, so their buffers differ until the next step; a checkpoint holds those that count."""
    config = FULL.model_copy(update={"ranks": 2, "ema_decay": None, "batch_size": 9})
    pair.run(normed, settings, f"{folder}/a", config, 7)
    assert_same(pair.run(normed, settings, f"{folder}/a", config, None)[0],
                pair.run(normed, settings, f"{folder}/b", config, None)[0])  # fmt: skip


def test_a_step_saved_again_is_kept_once(store: Store, folder: str):
    """After a fall back the best step is saved by a later group too: that one stays, for the first may be damaged."""
    config = CheckpointConfig(keep_last=1, keep_best=1)
    shelf_ = shelf(store, folder, config)
    one, two = shelf_.new_fence(), shelf_.new_fence()
    steps = [(one, 10, (0.9, -0.1)), (two, 10, (0.9, -0.1)), (two, 20, (0.8, -0.2)), (two, 30, (0.9, -0.1))]
    made = [pointer(fence, step).model_copy(update={"score": score}) for fence, step, score in steps]
    kept = kept_pointers({one.name: one for one in made}, config)
    assert list(kept) == [made[3].name, made[1].name]


def test_another_number_of_ranks_goes_on_with_the_same_rows(alone: Ranks, pair: Ranks, settings: Settings, folder: str):
    """From one rank to two, ddp to fsdp in between: same order of rows, loss within 1e-3 of undisturbed."""
    config = FULL.model_copy(update={"model": MlpConfig(hidden_sizes=(16,), dropout=0.0)})
    alone.run(interrupted, settings, f"{folder}/a", config, 5)
    more = config.model_copy(update={"ranks": 2})
    steps = {step for step, _ in pair.run(interrupted, settings, f"{folder}/a", more, 20)}
    sharded = more.model_copy(update={"strategy": "fsdp"})
    resumed, _ = pair.run(runs.fitted, settings, f"{folder}/a", sharded)[0]
    ((unbroken, _),) = alone.run(runs.fitted, settings, f"{folder}/b", config)
    assert steps == {20}
    for mine, theirs in zip(resumed, unbroken, strict=True):
        assert mine["step"] == theirs["step"]
        assert mine["train_loss"] == pytest.approx(theirs["train_loss"], abs=1e-3)
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-3)


def fit_and_tell(settings: Settings, folder: str, config: TrainConfig) -> list[RankEvent]:
    events: list[RankEvent] = []
    runs.trainer(settings, folder, config, events.append).fit()
    return events


def shelf(store: Store, folder: str, config: CheckpointConfig | None = None) -> Checkpoints:
    return Checkpoints(store, f"{store.root}/tests/{folder}", config or CheckpointConfig())


def spoil(store: Store, folder: str, how: str, newest: CheckpointPointer) -> None:
    base = f"{store.root}/tests/{folder}/{newest.name}"
    name = next(iter(newest.files))
    body = store.get(f"{base}/{name}")
    match how:
        case "truncated":
            store.put(f"{base}/{name}", body[:-10])
        case "altered":
            store.put(f"{base}/{name}", body[:-1] + bytes([body[-1] ^ 1]))
        case "missing":
            store.delete([f"{base}/{name}"])
        case "pointer":
            store.put(f"{base}.json", b'{"step": 1')


@pytest.mark.parametrize("how", ["truncated", "altered", "missing", "pointer"])
def test_damaged_checkpoint_falls_back_to_the_one_before(
    alone: Ranks, settings: Settings, store: Store, folder: str, how: str
):
    """The newest one cannot be used: training says so, goes on from the one before, and ends as if nothing had been."""
    longer = FULL.model_copy(update={"checkpoint": CheckpointConfig(keep_last=3), "max_epochs": 3})
    alone.run(interrupted, settings, f"{folder}/a", longer, 30)
    pointers = shelf(store, f"{folder}/a").pointers()
    spoil(store, f"{folder}/a", how, pointers[0])
    (events,) = alone.run(fit_and_tell, settings, f"{folder}/a", longer)
    (warning,) = [event.message for event in events if event.kind == "warning"]
    assert f"going on from step {pointers[1].step}" in warning
    assert pointers[0].name in warning
    started = next(event for event in events if event.kind == "started")
    assert started.values["resumed_steps"] == pointers[1].step


def expect_nothing_usable(settings: Settings, folder: str, config: TrainConfig) -> str:
    with pytest.raises(Exception, match="no checkpoint in") as caught:
        runs.trainer(settings, folder, config).fit()
    return type(caught.value).__name__


def test_when_every_checkpoint_is_damaged_it_says_so(alone: Ranks, settings: Settings, store: Store, folder: str):
    """Beginning anew could throw weeks away: that is the user's to decide."""
    alone.run(runs.fitted, settings, folder, runs.PLAIN)
    for pointer in shelf(store, folder).pointers():
        spoil(store, folder, "altered", pointer)
    assert alone.run(expect_nothing_usable, settings, folder, runs.PLAIN) == ["TrainingFailed"]


def expect_other_network(settings: Settings, folder: str, config: TrainConfig) -> str:
    with pytest.raises(Exception, match="of another network") as caught:
        runs.trainer(settings, folder, config).fit()
    return str(caught.value)


def test_checkpoint_of_another_network_is_refused(alone: Ranks, settings: Settings, folder: str):
    """The sentence names the first weight that differs, with both shapes."""
    alone.run(runs.fitted, settings, folder, runs.PLAIN)
    wider = runs.PLAIN.model_copy(update={"model": MlpConfig(hidden_sizes=(32, 16))})
    (sentence,) = alone.run(expect_other_network, settings, folder, wider)
    assert "layers.0.bias is [16] there and [32] here" in sentence


def test_last_and_best_checkpoints_stay(alone: Ranks, settings: Settings, store: Store, folder: str):
    """After training there are the newest k and the best m, and no other file."""
    config = runs.PLAIN.model_copy(
        update={"max_epochs": 8, "checkpoint": CheckpointConfig(every_steps=5, keep_last=2, keep_best=2)}
    )
    ((validations, _),) = alone.run(runs.fitted, settings, folder, config)
    ordered = sorted(validations, key=lambda row: (-row["accuracy"], row["loss"]))
    left = shelf(store, folder).pointers()
    best = {int(row["step"]) for row in ordered[:2]}
    newest = sorted({*range(5, 97, 5), *range(12, 97, 12)})[-2:]
    assert {pointer.step for pointer in left} == best | set(newest)
    base = f"{store.root}/tests/{folder}/"
    stems = {info.uri.removeprefix(base).partition("/")[0].removesuffix(".json") for info in store.list(base)}
    assert stems - {"fences"} == {pointer.name for pointer in left}


def pointer(fence: int, step: int) -> CheckpointPointer:
    return CheckpointPointer(step=step, fence=fence, files={}, progress={})


def test_stale_group_cannot_publish_over_a_newer_one(store: Store, folder: str):
    """It is told so; and what it got out in the very moment between does not count."""
    old, new = shelf(store, folder), shelf(store, folder)
    first, second = old.new_fence(), new.new_fence()
    new.publish(pointer(second, 10))
    with pytest.raises(TrainingTakenOver, match=f"fence {second}"):
        old.publish(pointer(first, 20))
    late = pointer(first, 30)  # as if the check had come a moment before the other's fence
    store.put_new(f"{old.folder}/{late.name}.json", late.model_dump_json().encode())
    assert shelf(store, folder).pointers()[0] == pointer(second, 10)


def test_fences_are_never_shared(store: Store, folder: str):
    """Each group gets a number of its own, above all before it."""
    numbers = [shelf(store, folder).new_fence() for _ in range(3)]
    assert numbers == sorted(set(numbers))


class BrokenStore(Store):
    """A store that takes no more files: uploads fail, or never come back."""

    hangs = False

    def upload(self, path: Path, uri: str, attributes: Mapping[str, str] | None = None) -> None:  # noqa: ARG002
        if self.hangs:
            time.sleep(20)
        raise NotFound(f"{path.name} -> {uri}: the bucket is gone")


def expect_failed_save(settings: Settings, folder: str, config: TrainConfig, hangs: bool) -> tuple[str, str, int]:
    """Name and sentence of the error that a training ends with when saving breaks in its midst."""
    made = runs.trainer(settings, folder, config, store=Store(settings))
    made._saver.wait()
    broken = BrokenStore(settings)
    broken.hangs = hangs
    made._checkpoints._store = broken
    with pytest.raises(Exception) as caught:  # noqa: PT011 - told apart by the caller
        made.fit()
    return type(caught.value).__name__, str(caught.value), made.progress.step


def expect_full_disk(settings: Settings, folder: str, config: TrainConfig, disk: str) -> str:
    """The sentence of a training whose checkpoints find no room."""
    made = runs.trainer(settings, folder, config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", disk)
        with pytest.raises(MachineFull) as caught:
            made.fit()
    return str(caught.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a small disk")
def test_a_full_disk_is_named(alone: Ranks, settings: Settings, store: Store, folder: str, tmp_path: Path):
    """With what a save takes and what there is; nothing stays on the disk, and no checkpoint is published."""
    if os.system(f"mount -t tmpfs -o size=8k none {tmp_path}"):  # noqa: S605
        pytest.skip("this machine lets nobody mount")
    try:
        (sentence,) = alone.run(expect_full_disk, settings, folder, FULL, str(tmp_path))
        assert re.search(rf"takes 0\.0 MB on the disk .* and {tmp_path} has 0\.0 MB free; .* another TMPDIR", sentence)
        assert not list(tmp_path.iterdir())
        assert not shelf(store, folder).pointers()
    finally:
        os.system(f"umount -l {tmp_path}")  # noqa: S605


def saved_during_an_outage(
    settings: Settings, folder: str, config: TrainConfig, seconds: float
) -> tuple[Any, list[str], str]:
    """Train through a front of the store that answers nobody from the first checkpoint on, for so long: the validations and
    weights, the warnings, and the error that it ended with."""
    warnings: list[str] = []
    with front(urlsplit(settings.store_url).port or 0) as between:
        behind = settings.model_copy(update={"s3_endpoint_url": f"http://127.0.0.1:{between.port}"})

        def on_event(event: RankEvent) -> None:
            if event.kind == "warning":
                warnings.append(event.message)
            if event.kind == "checkpoint" and not between.is_away and not warnings:
                between.is_away = True
                threading.Timer(seconds, lambda: setattr(between, "is_away", False)).start()

        made = runs.trainer(behind, folder, config, on_event)
        try:
            progress = made.fit()
        except StoreUnavailable as failure:
            return None, warnings, str(failure)
        return (progress.validations, {name: value.numpy() for name, value in runs.weights(made).items()}), warnings, ""


def test_a_save_waits_for_a_bucket_that_is_away(alone: Ranks, settings: Settings, folder: str):
    """Training goes on meanwhile, says so once, and ends as without."""
    config = FULL.model_copy(update={"checkpoint": CheckpointConfig(every_steps=10, timeout_seconds=30)})
    ((product, warnings, _),) = alone.run(saved_during_an_outage, settings, f"{folder}/a", config, 4.0)
    (unbroken,) = alone.run(runs.fitted, settings, f"{folder}/b", config)
    assert_same(product, unbroken)
    (warning,) = warnings
    assert "a checkpoint waits for the bucket, 2" in warning


@pytest.mark.soak
def test_a_bucket_that_stays_away_is_named_in_time(alone: Ranks, settings: Settings, folder: str):
    """Away for longer than a save may take, it is the error of the training."""
    config = FULL.model_copy(update={"checkpoint": CheckpointConfig(every_steps=10, timeout_seconds=5)})
    began = time.monotonic()
    ((product, _, error),) = alone.run(saved_during_an_outage, settings, folder, config, 60.0)
    assert product is None
    assert folder in error
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(("hangs", "error", "words"), [
    (False, "NotFound", "the bucket is gone"),
    (True, "CheckpointFailed", "train.checkpoint.timeout_seconds=1"),
])  # fmt: skip
def test_save_that_fails_or_hangs_is_an_error(
    alone: Ranks, settings: Settings, store: Store, folder: str, hangs: bool, error: str, words: str
):
    """Never a silent stall: it is raised in training, within the bound; the checkpoint before it stands."""
    bound = CheckpointConfig(every_steps=2, timeout_seconds=1)
    config = FULL.model_copy(update={"checkpoint": bound, "max_epochs": 200})
    alone.run(interrupted, settings, folder, config, 5)
    before = shelf(store, folder).pointers()[0]
    ((name, sentence, _),) = alone.run(expect_failed_save, settings, folder, config, hangs)
    assert name == error
    assert words in sentence
    assert shelf(store, folder).pointers()[0] == before
