"""Ray as the launcher: what it refuses, and trainings on a cluster of several nodes, killed for real."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import chdir, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydantic import ValidationError

import modelyard
from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Catalog, Origin
from modelyard.errors import ClusterUnavailable, ConfigError, MissingExtra, RankLost
from modelyard.models import CustomConfig
from modelyard.settings import ENV_PREFIX, Settings
from modelyard.storage import Store
from modelyard.train import CheckpointConfig, RankEvent, RayConfig, TrainConfig, train
from modelyard.train.ray_agent import ABANDONED_SECONDS
from modelyard.train.ray_placement import Layout, Place, in_order, lay_out, rank_environments, rooms
from tests.conftest import alive, free_ports
from tests.rayclusters import NODE, occupied, ray_cluster
from tests.train.conftest import make_dataset
from tests.train.test_stage import KILL_BOUND_SECONDS, TRAINING_SCRIPT, is_rank

# -- what is said before anything starts --------------------------------------------------------------


@pytest.mark.parametrize(("update", "words"), [
    ({"launcher": "rey"}, r"launcher(.|\n)*did you mean 'ray'"),
    ({"ray": {"address": "ray://head:10001"}}, r"ray\.address(.|\n)*ray://head:10001 is that of Ray's client server"),
    ({"ray": {"address": "head"}}, r"'head' is neither host:port nor 'auto'"),
    ({"ray": {"adress": "auto"}}, r"ray\.adress"),
])  # fmt: skip
def test_a_wrong_launcher_is_refused_by_the_config(update: dict[str, Any], words: str):
    """With the nearest name, or what to write."""
    with pytest.raises(ValidationError, match=words):
        TrainConfig.model_validate(update)


def test_who_launches_is_no_part_of_the_work():
    """The same key whoever starts the ranks; and Ray's nodes need no meeting point."""
    assert TrainConfig(launcher="ray", ray=RayConfig(cpus=2)).identity() == TrainConfig().identity()
    TrainConfig(launcher="ray", nodes="1:3")


def test_without_ray_no_rank_is_started(
    catalog: Catalog, dataset: ArtifactRef, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
):
    """The sentence says what to install."""
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"train\.launcher ray needs .*modelyard\[ray\]"):
        train(catalog, dataset, by_ray(config, "auto", seed=90), Origin())


def test_no_cluster_at_the_address_is_said_at_once(catalog: Catalog, dataset: ArtifactRef, config: TrainConfig):
    """By a launcher that has not begun to load Ray; worth another try."""
    (port,) = free_ports(1)
    with pytest.raises(ClusterUnavailable, match=rf"no Ray cluster answers at 127\.0\.0\.1:{port}: .*ray start --head"):
        train(catalog, dataset, by_ray(config, f"127.0.0.1:{port}", seed=90), Origin())


@pytest.mark.parametrize(("update", "capacity", "expected"), [
    ({"ranks": 3}, [1, 2], Layout(ranks=(1, 1, 1), strategy="PACK")),
    ({"ranks": 2, "nodes": "2"}, [2, 1, 4], Layout(ranks=(2, 2), strategy="STRICT_SPREAD")),
    ({"ranks": 2, "nodes": "1:3"}, [2, 1, 4], Layout(ranks=(2, 2), strategy="STRICT_SPREAD")),
    ({"ranks": 4}, [1, 2], r"train\.ranks: 4 ranks, and the 2 nodes .* room for 1, 2 of 1 CPU each"),
    ({"ranks": 2, "nodes": "2"}, [3, 1], r"train\.nodes: 2 nodes with 2 ranks each, .* nodes: 1 takes ranks wherever"),
])  # fmt: skip
def test_ranks_are_laid_out_or_refused(update: dict[str, Any], capacity: list[int], expected: Layout | str):
    """By what nodes have at all: what will never fit is said, not waited for."""
    config = TrainConfig.model_validate({"launcher": "ray", **update})
    if isinstance(expected, str):
        with pytest.raises(ConfigError, match=expected):
            lay_out(config, capacity)
    else:
        assert lay_out(config, capacity) == expected


def test_room_is_counted_in_whole_ranks_of_living_nodes():
    """By CPUs and, where ranks want them, GPUs."""
    nodes = [
        {"Alive": True, "Resources": {"CPU": 5.0, "GPU": 1.0}},
        {"Alive": True, "Resources": {"memory": 1e9}},
        {"Alive": False, "Resources": {"CPU": 8.0, "GPU": 8.0}},
    ]
    assert rooms(nodes, TrainConfig(ranks=8, ray=RayConfig(cpus=2))) == [2, 0]
    assert rooms(nodes, TrainConfig(ranks=8, ray=RayConfig(gpus=1))) == [1, 0]


def test_ranks_are_told_what_torchs_launcher_would_tell():
    """Those of one machine are neighbours and share its GPUs; all meet where the first one is."""

    def place(address: str, gpu: str) -> Place:
        return Place(address=address, port=1000 + int(gpu), gpus=(gpu,), code="")

    places = [place("a", "3"), place("b", "1"), place("a", "0")]
    order = in_order(places)
    assert order == [0, 2, 1]
    told = [one for its in rank_environments([places[index] for index in order], [1, 1, 1]) for one in its]
    assert [one["RANK"] for one in told] == ["0", "1", "2"]
    assert [one["LOCAL_RANK"] for one in told] == ["0", "1", "0"]
    assert [one["GROUP_RANK"] for one in told] == ["0", "0", "1"]
    assert [one["CUDA_VISIBLE_DEVICES"] for one in told] == ["3,0", "3,0", "1"]
    assert {(one["MASTER_ADDR"], one["MASTER_PORT"], one["WORLD_SIZE"]) for one in told} == {("a", "1003", "3")}


# -- a cluster ----------------------------------------------------------------------------------------


@pytest.fixture
def cluster(store: Store) -> Iterator[Any]:
    """Three nodes with a CPU each, and a head."""
    with ray_cluster(1, 1, 1) as made:
        yield made


def by_ray(config: TrainConfig, address: str, **update: Any) -> TrainConfig:
    ray = RayConfig(address=address, wait_seconds=20)
    return config.model_copy(update={"launcher": "ray", "ray": ray, "batch_size": 8, "silence_seconds": 60, **update})


def ranks_of(settings: Settings) -> list[psutil.Process]:
    """The ranks of this installation, whoever their parents are."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if is_rank(process) and process.environ().get(ENV_PREFIX + "HOME") == str(settings.home):
                found.append(process)
    return found


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_a_training_on_a_cluster_is_that_of_torchs_launcher_whatever_dies(
    settings: Settings, catalog: Catalog, dataset: ArtifactRef, config: TrainConfig, cluster: Any
):
    """SIGTERM of the launcher saves the very step; `kill -9` of the process that trains leaves no rank in the cluster after
    10 s; a killed rank, and then a killed node, begin the group anew elsewhere; and the digest is that of two ranks of
    torch's launcher that nobody touched."""
    long = by_ray(config, cluster.address, max_epochs=12, checkpoint=CheckpointConfig(every_steps=60))
    told: list[RankEvent] = []
    with pytest.raises(RankLost):
        train(catalog, dataset, long, Origin(), at_checkpoint(told, 1, lambda: launcher().send_signal(signal.SIGTERM)))
    preempted = next(event for event in told if event.error == "Preempted")
    assert "is saved" in preempted.message

    command = [sys.executable, "-c", TRAINING_SCRIPT, dataset.model_dump_json(), long.model_dump_json()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert list(itertools.islice((line for line in process.stdout if line == "checkpoint\n"), 2))
        ranks = ranks_of(settings)
        assert len(ranks) == 2
        process.send_signal(signal.SIGKILL)
    _, left = psutil.wait_procs(ranks, timeout=KILL_BOUND_SECONDS)
    assert not alive(left)

    nodes = list(cluster.worker_nodes)
    events: list[RankEvent] = []

    def kill_a_rank() -> None:
        ranks_of(settings)[-1].kill()

    def kill_a_node() -> None:
        ranks = ranks_of(settings)
        agent = psutil.Process(ranks[-1].ppid())
        node = next(one for one in nodes if raylet_of(one).pid == agent.ppid())
        cluster.remove_node(node, allow_graceful=False)

    first = at_checkpoint(events, 1, kill_a_rank)
    product = train(catalog, dataset, long, Origin(), at_checkpoint([], 3, kill_a_node, first))
    begun = [event.values["resumed_steps"] for event in events if event.kind == "started"]
    assert len(begun) == 3
    assert preempted.step < begun[0] < begun[1] < begun[2]
    assert {event.values["world_size"] for event in events if event.kind == "started"} == {2}
    assert not ranks_of(settings)

    elsewhere = Catalog(Store(settings.model_copy(update={"bucket": "modelyard-torch"})))
    elsewhere.store.control.create_bucket()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODELYARD_BUCKET", "modelyard-torch")
        torchs = train(elsewhere, make_dataset(elsewhere), long.model_copy(update={"launcher": "torch"}), Origin())
    assert not torchs.reused
    assert torchs.ref.digest == product.ref.digest


@pytest.mark.soak
def test_a_cancelled_training_ends_in_the_cluster_too(
    settings: Settings, catalog: Catalog, dataset: ArtifactRef, config: TrainConfig, cluster: Any
):
    """Ranks that die more often than they may end the training. Those that nobody asks for, as behind a network that was cut,
    end themselves, and the group begins anew. An exception in the process that trains, as a cancelled flow meets it, ends
    every rank within 10 s."""
    endless = by_ray(config, cluster.address, seed=91, max_epochs=5000, nodes="3", ranks=1)

    def kill_one() -> None:
        ranks_of(settings)[0].kill()

    deadly = at_checkpoint([], 1, kill_one)
    with pytest.raises(RankLost, match=r"try 1 of 1: rank \d ended with status"):
        train(catalog, dataset, endless.model_copy(update={"max_restarts": 0}), Origin(), deadly)

    forgotten: list[psutil.Process] = []
    ranks: list[psutil.Process] = []

    def forget() -> None:
        forgotten.extend(ranks_of(settings))
        launcher().suspend()
        _, left = psutil.wait_procs(forgotten, timeout=ABANDONED_SECONDS + KILL_BOUND_SECONDS)
        launcher().resume()
        assert not alive(left)

    def cancel() -> None:
        ranks.extend(set(ranks_of(settings)) - set(forgotten))
        if ranks:
            raise KeyboardInterrupt

    events: list[RankEvent] = []
    forgetful = at_checkpoint(events, 1, forget)
    with pytest.raises(KeyboardInterrupt):
        train(
            catalog,
            dataset,
            endless,
            Origin(),
            lambda event: (forgetful(event), event.kind == "checkpoint" and cancel()),
        )
    assert (len(forgotten), len(ranks)) == (3, 3)
    _, left = psutil.wait_procs(ranks, timeout=KILL_BOUND_SECONDS)
    assert not alive(left)


@pytest.mark.soak
def test_what_the_cluster_has_no_room_for_is_refused_in_time(
    catalog: Catalog,
    dataset: ArtifactRef,
    config: TrainConfig,
    cluster: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """More ranks than CPUs, GPUs that are not there, or a node with other code, at once and for good; a cluster that others
    use after the wait that was asked for; and an open port that is no Ray after a bounded time."""
    for update, words in (
        (
            {"ranks": 4},
            r"train\.ranks: 4 ranks, and the 4 nodes of the Ray cluster have room for 1, 1, 1, 0 of 1 CPU each",
        ),
        ({"nodes": "4", "ranks": 1}, r"train\.nodes: 4 nodes with 1 ranks each"),
        ({"ray": RayConfig(address=cluster.address, gpus=1)}, "room for 0, 0, 0, 0 of 1 CPU and 1 GPU each"),
    ):
        with pytest.raises(ConfigError, match=words):
            train(catalog, dataset, by_ray(config, cluster.address, **({"seed": 92} | update)), Origin())

    with occupied(cluster.address):
        began = time.monotonic()
        busy = RayConfig(address=cluster.address, wait_seconds=5)
        with pytest.raises(
            ClusterUnavailable, match=r"room for 2 ranks was not there within 5 s .*1 CPU and .* of 3 CPU"
        ):
            train(catalog, dataset, by_ray(config, "auto", seed=92, ray=busy), Origin())
        assert time.monotonic() - began < 30

    copied = shutil.copytree(Path(modelyard.__file__).parent, tmp_path / "modelyard")
    with (copied / "train" / "losses.py").open("a") as file:
        file.write("# another release\n")
    with chdir(tmp_path):
        cluster.add_node(num_cpus=2, env_vars={"PYTHONPATH": str(tmp_path)}, **NODE)
    with pytest.raises(ConfigError, match=r"train\.launcher: the Ray node .* runs other code"):
        train(catalog, dataset, by_ray(config, cluster.address, seed=92), Origin())

    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "mine_alone.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path / "alone"))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'alone'}:{os.environ.get('PYTHONPATH', '')}")
    mine = CustomConfig(kind="custom", factory="mine_alone:network")
    with pytest.raises(ConfigError, match=r"the Ray node .* cannot run ranks: .*no module 'mine_alone'"):
        train(catalog, dataset, by_ray(config, cluster.address, seed=92, model=mine), Origin())

    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        with pytest.raises(ClusterUnavailable, match="has not taken this process in within 20 s"):
            train(catalog, dataset, by_ray(config, address, seed=92), Origin())


def at_checkpoint(
    told: list[RankEvent], number: int, action: Callable[[], Any], also: Callable[[RankEvent], None] = lambda _: None
) -> Callable[[RankEvent], None]:
    """Remembers events, and acts once, when so many checkpoints were told of."""
    seen = itertools.count(1)

    def on_event(event: RankEvent) -> None:
        told.append(event)
        also(event)
        if event.kind == "checkpoint" and next(seen) == number:
            action()

    return on_event


def launcher() -> psutil.Process:
    return next(child for child in psutil.Process().children() if "modelyard.train.ray_launcher" in child.cmdline())


def raylet_of(node: Any) -> psutil.Process:
    (raylet,) = node.all_processes["raylet"]
    return psutil.Process(raylet.process.pid)
