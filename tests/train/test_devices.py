"""What ranks compute on, by name."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from modelyard.errors import ConfigError, MachineBusy
from modelyard.train import DeviceName, RayConfig, TrainConfig
from modelyard.train.device_locks import DEVICES_VARIABLE, held_devices
from modelyard.train.devices import (
    Accelerators,
    chosen_kind,
    held_device,
    rank_device,
    require_devices,
)

NONE, TWO = Accelerators(), Accelerators(kind="cuda", count=2)


@pytest.mark.parametrize(("name", "there", "kind"), [
    ("auto", NONE, "cpu"), ("auto", TWO, "cuda"), ("cpu", TWO, "cpu"), ("cpu", NONE, "cpu"), ("cuda", TWO, "cuda"),
])  # fmt: skip
def test_a_name_stands_for_what_the_machine_has(name: DeviceName, there: Accelerators, kind: str):
    """`auto` is an accelerator where there is one; `cpu` is that anywhere."""
    assert chosen_kind(name, there) == kind


def test_what_is_not_there_is_refused_by_name():
    """The sentence says what the machine has, and what can be taken; a kind that torch does not know has a nearest."""
    with pytest.raises(
        ConfigError, match=r"train\.device: there is no 'cuda': torch .* finds no accelerator here.*auto or cpu,"
    ):
        chosen_kind("cuda", NONE)
    with pytest.raises(
        ConfigError, match=r"there is no 'xpu': .* finds 2 x cuda here.*; take auto, cpu or cuda, or another"
    ):
        chosen_kind("xpu", TWO)
    with pytest.raises(
        ConfigError, match=r"train\.ranks: 3 ranks need a device each: .* 2 x cuda .*; take ranks 2, or train"
    ):
        require_devices("auto", 3, TWO)
    require_devices("cpu", 3, TWO)
    require_devices("auto", 3, NONE)
    with pytest.raises(ValidationError, match="did you mean 'cuda'"):
        TrainConfig.model_validate({"device": "cuda:1"})


def test_a_rank_takes_the_device_that_is_its_own(monkeypatch: pytest.MonkeyPatch):
    """Of those that the launching process holds, by its place on the machine; without any, by that place alone."""
    assert [held_device(rank) for rank in range(2)] == [0, 1]
    monkeypatch.setenv(DEVICES_VARIABLE, "2,5")
    assert [held_device(rank) for rank in range(2)] == [2, 5]
    assert rank_device("cpu") == torch.device("cpu")
    missing: DeviceName = "xpu" if Accelerators.here().kind != "xpu" else "cuda"
    with pytest.raises(ConfigError, match="there is no"):
        rank_device(missing)


def test_devices_of_a_ray_cluster_are_those_set_aside():
    """Ray hides the others, so a name that contradicts `train.ray.gpus` could only fail later."""
    with pytest.raises(ValidationError, match=r"device cuda needs one that Ray sets aside .*: ray\.gpus 1"):
        TrainConfig(launcher="ray", device="cuda")
    with pytest.raises(ValidationError, match=r"leaves the GPU idle that ray\.gpus 1 sets aside"):
        TrainConfig(launcher="ray", device="cpu", ray=RayConfig(gpus=1))
    assert TrainConfig(launcher="ray", device="cuda", ray=RayConfig(gpus=1)).device == "cuda"


def test_where_it_was_trained_is_no_part_of_the_work():
    """A training may go on elsewhere; what it ran on is in the provenance."""
    assert TrainConfig(device="cpu").identity() == TrainConfig().identity()


def test_two_trainings_never_hold_the_same_accelerators(tmp_path: Path):
    """Each gets free ones of its own; too few is said, with how many there are; a process that inherited a lock holds the
    device as long as it lives, and the ranks of a CPU need none."""
    with held_devices(tmp_path, "cuda", 2, 4) as first, held_devices(tmp_path, "cuda", 1, 4) as second:
        assert (first.numbers, second.numbers) == ((0, 1), (2,))
        assert first.variables == {DEVICES_VARIABLE: "0,1"}
        with pytest.raises(MachineBusy, match="2 cuda devices are wanted, and other trainings hold all but 1 of 4"):
            held_devices(tmp_path, "cuda", 2, 4).__enter__()
        with held_devices(tmp_path, "xpu", 2, 2) as others, held_devices(tmp_path, "cpu", 64, 0) as none:
            assert (others.numbers, none.numbers) == ((0, 1), ())
        child = subprocess.Popen(["sleep", "60"], pass_fds=second.locks)
    with held_devices(tmp_path, "cuda", 3, 4) as third:
        assert third.numbers == (0, 1, 3)
    child.kill()
    child.wait(10)
    with held_devices(tmp_path, "cuda", 4, 4) as all_of_them:
        assert all_of_them.numbers == (0, 1, 2, 3)
