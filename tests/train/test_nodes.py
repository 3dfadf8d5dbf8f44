"""One training on several machines: network namespaces stand for them, with an interface and nothing else in common."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from pydantic import ValidationError

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Catalog, Origin
from modelyard.errors import ConfigError
from modelyard.settings import ENV_PREFIX, Settings
from modelyard.train import CheckpointConfig, RankEvent, StopConfig, TrainConfig, train
from modelyard.train.launch import group_name, launch_command
from modelyard.train.nodes import own_address
from tests.conftest import alive, free_ports
from tests.train.test_stage import TRAINING_SCRIPT

OURS, THEIRS, NAMESPACE = "10.213.77.1", "10.213.77.2", "modelyard-node"


# -- what is said before anything starts --------------------------------------------------------------


@pytest.mark.parametrize(("update", "words"), [
    ({"nodes": "2"}, r"nodes 2 need train\.rendezvous: host:port of the machine that runs the flow"),
    ({"nodes": "3:2", "rendezvous": "a:1"}, "3 is more than 2: write 2:3"),
    ({"nodes": "0"}, r"nodes(.|\n)*should match pattern"),
    ({"nodes": "two"}, r"nodes(.|\n)*should match pattern"),
    ({"nodes": "2", "rendezvous": "here"}, r"rendezvous(.|\n)*should match pattern"),
    ({"nodes": "1:40", "rendezvous": "a:1"}, "batch_size 64 is smaller than ranks 80"),
])  # fmt: skip
def test_nodes_that_cannot_meet_are_refused_by_the_config(update: dict[str, str], words: str):
    """With what is missing."""
    with pytest.raises(ValidationError, match=words):
        TrainConfig.model_validate(update)


def test_a_meeting_point_without_a_way_there_starts_no_launcher(tmp_path: Path):
    """The sentence names the key; a machine of its own needs no meeting point."""
    config = TrainConfig(nodes="1:2", rendezvous="no-such-machine.invalid:29400")
    with pytest.raises(ConfigError, match=r"train\.rendezvous: no-such-machine\.invalid:29400 cannot be reached"):
        launch_command(tmp_path / "spec.json", config)
    assert "--standalone" in launch_command(tmp_path / "spec.json", TrainConfig())
    assert own_address("127.0.0.1:29400") == "127.0.0.1"


# -- two machines -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Another machine, as what it is told by its environment."""

    environment: dict[str, str]

    def launch(self, job: str) -> subprocess.Popen[str]:
        command = ["ip", "netns", "exec", NAMESPACE, sys.executable, "-m", "modelyard.train.launch", job]
        return subprocess.Popen(
            command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0
        )


@pytest.fixture
def machine(settings: Settings, store: object) -> Iterator[Machine]:
    """A network namespace, reached by an interface; the bucket is forwarded to there."""
    del store
    if os.geteuid():
        pytest.skip("network namespaces need root")
    subprocess.run(["ip", "netns", "add", NAMESPACE], check=True)
    inside = ["ip", "netns", "exec", NAMESPACE]
    try:
        for command in (
            ["ip", "link", "add", "modelyard0", "type", "veth", "peer", "name", "modelyard1"],
            ["ip", "link", "set", "modelyard1", "netns", NAMESPACE],
            ["ip", "addr", "add", f"{OURS}/24", "dev", "modelyard0"],
            ["ip", "link", "set", "modelyard0", "up"],
            [*inside, "ip", "addr", "add", f"{THEIRS}/24", "dev", "modelyard1"],
            [*inside, "ip", "link", "set", "modelyard1", "up"],
            [*inside, "ip", "link", "set", "lo", "up"],
        ):
            subprocess.run(command, check=True)
        (port,) = free_ports(1)
        with forwarded((OURS, port), (settings.host, settings.store_port)):
            yield Machine(environment={**os.environ, ENV_PREFIX + "S3_ENDPOINT_URL": f"http://{OURS}:{port}"})
    finally:
        subprocess.run(["ip", "link", "del", "modelyard0"], check=False)
        subprocess.run(["ip", "netns", "del", NAMESPACE], check=False)


@contextmanager
def forwarded(here: tuple[str, int], there: tuple[str, int]) -> Generator[None]:
    """Connections to one address reach another."""
    listener = socket.create_server(here)

    def copy(one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while body := one.recv(1 << 16):
                other.sendall(body)
        for end in (one, other):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def accept() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection(there)
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=copy, args=pair, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    parent = psutil.Process(process.pid)
    return [parent, *parent.children(recursive=True)]


def on_two(config: TrainConfig, nodes: str, **update: object) -> TrainConfig:
    (port,) = free_ports(1)
    every = CheckpointConfig(every_seconds=1)
    small = {"ranks": 1, "batch_size": 8, "silence_seconds": 40, "checkpoint": every}
    return config.model_copy(update={**small, "nodes": nodes, "rendezvous": f"{OURS}:{port}", **update})


@pytest.mark.soak
def test_two_machines_train_as_two_ranks_of_one(
    catalog: Catalog, dataset: ArtifactRef, config: TrainConfig, machine: Machine
):
    """The other machine is started with what the first prints; the validations are the same bits as with two ranks on one
    machine, and the other ends well."""
    others: list[subprocess.Popen[str]] = []
    started: list[float] = []

    def on_event(event: RankEvent) -> None:
        if event.message.startswith("other nodes: "):
            others.append(machine.launch(event.message.rpartition(" ")[2]))
        if event.kind == "started":
            started.append(event.values["world_size"])

    product = train(catalog, dataset, on_two(config, "2", seed=21), Origin(), on_event)
    out, errors = others[0].communicate(timeout=30)
    assert others[0].returncode == 0, errors
    assert '"kind":"finished"' in out
    assert started == [2]
    alone = config.model_copy(update={"batch_size": 8, "seed": 21, "silence_seconds": 40})
    together = train(catalog, dataset, alone, Origin())
    assert product.manifest.content.facts["metrics"] == together.manifest.content.facts["metrics"]


@pytest.mark.soak
def test_machines_come_and_go(catalog: Catalog, dataset: ArtifactRef, config: TrainConfig, machine: Machine):
    """With ``nodes: 1:2`` the other machine is killed, and training goes on alone; it comes again, and both go on from a
    checkpoint; each time the group says how many ranks there are."""
    others: list[subprocess.Popen[str]] = []
    sizes: list[float] = []
    job, killed = "", list[psutil.Process]()

    def on_event(event: RankEvent) -> None:
        nonlocal job
        if event.message.startswith("other nodes: "):
            job = event.message.rpartition(" ")[2]
            others.append(machine.launch(job))
        if event.kind == "started":
            sizes.append(event.values["world_size"])
        if event.kind != "checkpoint":
            return
        if sizes[-1] == 2 and not killed:
            killed.extend(family(others[0]))
            for process in killed:
                process.kill()
        if sizes[-1] == 1 and killed and len(others) == 1:
            others.append(machine.launch(job))

    changing = on_two(config, "1:2", seed=22, max_epochs=5000, stop=StopConfig(max_seconds=60))
    product = train(catalog, dataset, changing, Origin(), on_event)
    _, errors = others[1].communicate(timeout=60)
    others[0].communicate(timeout=10)
    assert others[1].returncode == 0, errors
    assert [size for size, before in zip(sizes, [0, *sizes], strict=False) if size != before][-3:] == [2, 1, 2]
    assert product.manifest.content.facts["metrics"]["accuracy"] > 0.9


@pytest.mark.soak
def test_the_other_machine_ends_when_the_first_is_gone(
    catalog: Catalog, dataset: ArtifactRef, config: TrainConfig, machine: Machine
):
    """`kill -9` of everything on the machine that runs the flow: nothing is left on the other within its own watchdog."""
    long = on_two(config, "2", seed=23, max_epochs=5000)
    command = [sys.executable, "-c", TRAINING_SCRIPT.replace("event.kind", "event.kind, event.message"),
               dataset.model_dump_json(), long.model_dump_json()]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        other = machine.launch(first.stdout.readline().split()[-1])
        assert any(line.startswith("checkpoint") for line in first.stdout)
        theirs = family(other)
        assert len(theirs) >= 3
        for process in family(first):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
    other.communicate(timeout=long.silence_seconds + 30)
    assert other.returncode == 1
    _, left = psutil.wait_procs(theirs, timeout=10)
    assert not alive(left)


def test_a_group_is_named_after_its_job():
    """Two trainings that meet at the same place, one after the other, are not taken for one."""
    assert group_name("s3://a/job") != group_name("s3://b/job")
