"""A taken port is said to be taken: which, by whom, and what to set."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from commands import stack as stack_commands
from commands.parts import ENDPOINT, GRPC_OFFSET, MLFLOW, PREFECT, STORE
from commands.ports import check_free
from modelyard.errors import ConfigError, PortTaken
from tests.conftest import Installation, free_ports

LISTEN = """
import socket, sys
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("listening", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def stranger() -> Iterator[tuple[int, psutil.Process]]:
    """Another process that holds a port."""
    port = free_ports(1)[0]
    command = [sys.executable, "-c", LISTEN, str(port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "listening\n"
        yield port, psutil.Process(process.pid)


def test_a_taken_port_names_port_setting_and_process(
    installation: Installation, stranger: tuple[int, psutil.Process], tmp_path: Path
):
    """`up` refuses before it starts anything."""
    port, process = stranger
    # A home of its own: where the endpoint runs already, its port is not looked at.
    settings = installation.settings.model_copy(update={"home": tmp_path, "endpoint_port": port})
    with pytest.raises(PortTaken) as taken:
        stack_commands.up(settings, [ENDPOINT])
    assert (taken.value.port, taken.value.setting) == (port, "MODELYARD_ENDPOINT_PORT")
    assert taken.value.owner == f"{process.name()} (pid {process.pid})"
    assert "MODELYARD_ENDPOINT_PORT=<port>" in str(taken.value)


def test_a_taken_grpc_twin_names_the_setting_that_moves_it(
    installation: Installation, stranger: tuple[int, psutil.Process]
):
    """The store's ports come in pairs; the message is about the one that is taken."""
    port, _ = stranger
    fresh = free_ports(5)
    fields = dict(zip(STORE.port_fields, fresh, strict=True)) | {"store_filer_port": port - GRPC_OFFSET}
    with pytest.raises(PortTaken) as taken:
        check_free(installation.settings.model_copy(update=fields), [STORE])
    assert (taken.value.port, taken.value.setting) == (port, "MODELYARD_STORE_FILER_PORT")


def test_a_host_that_is_not_ours_is_no_taken_port(installation: Installation):
    """An address of another machine is blamed on the setting that names it."""
    fresh = dict(zip(STORE.port_fields, free_ports(5), strict=True))
    with pytest.raises(ConfigError, match="MODELYARD_HOST"):
        check_free(installation.settings.model_copy(update={"host": "192.0.2.1", **fresh}), [STORE])


def test_two_settings_with_one_port_are_refused(installation: Installation):
    """Nobody holds it yet, but both cannot have it."""
    port = free_ports(1)[0]
    settings = installation.settings.model_copy(update={"mlflow_port": port, "prefect_port": port})
    with pytest.raises(ConfigError, match=r"MODELYARD_PREFECT_PORT: port .* MODELYARD_MLFLOW_PORT"):
        check_free(settings, [MLFLOW, PREFECT])
