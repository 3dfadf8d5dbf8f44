"""The embedded store: closed to strangers, restarted when it dies, gone when told."""

from __future__ import annotations

import os
import signal
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from pydantic import SecretStr

from commands import stack as stack_commands
from commands.parts import STORE
from commands.readiness import failing_check
from commands.supervision import Supervisor, orphans, short_path
from modelyard.errors import StackFailed, StoreRefused
from modelyard.settings import Settings
from modelyard.storage import Store
from tests.conftest import Installation, alive, new_installation


def test_a_wrong_secret_is_refused_at_once(store: Store, settings: Settings):
    """`up` with another secret than the store's says so in a sentence, without waiting for the bound."""
    began = time.monotonic()
    with pytest.raises(StoreRefused, match="refused the credentials"):
        stack_commands.up(settings.model_copy(update={"s3_secret_key": SecretStr("wrong")}), [STORE])
    assert time.monotonic() - began < 5
    assert failing_check("store", settings) is None


@pytest.mark.parametrize("port_field", ["store_filer_port", "store_volume_port", "store_port"])
def test_strangers_neither_read_nor_write(store: Store, settings: Settings, port_field: str):
    """Without a signature no port gives or takes a byte, while S3 with credentials works."""
    store.put(f"{store.root}/private", b"private")
    base = f"http://{settings.host}:{getattr(settings, port_field)}"
    path = f"/{settings.bucket}/private" if port_field == "store_port" else f"/buckets/{settings.bucket}/private"
    if port_field == "store_volume_port":
        path = "/1,01637037d6"  # the form of a file id
    for answer in (httpx.get(base + path), httpx.post(base + path, content=b"x"), httpx.put(base + path, content=b"x")):
        assert answer.status_code in {401, 403, 405}, answer.text
        assert b"private" not in answer.content or b"<Error>" in answer.content
    assert store.get(f"{store.root}/private") == b"private"


def test_secrets_are_private_files(installation: Installation):
    """The folder is 0700 and each file in it 0600."""
    folder = installation.settings.secrets_folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    files = list(folder.iterdir())
    assert len(files) >= 7
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_secrets_appear_nowhere_else(store: Store, installation: Installation):
    """No argument list and no file outside the secrets folder holds one: not the supervisor's file, not a log."""
    hidden = _secrets_of(installation.settings)
    for process in orphans(installation.home):
        line = " ".join(process.cmdline())
        assert not [secret for secret in hidden if secret in line], line
        assert not [secret for secret in hidden if secret in repr(process.environ())]
    for folder in ("supervisor", "logs"):
        for path in (installation.home / folder).iterdir():
            if path.is_file():
                text = path.read_text(errors="replace")
                assert not [secret for secret in hidden if secret in text], path


def test_a_killed_store_comes_back_with_its_objects(store: Store, installation: Installation):
    """The supervisor restarts it under another pid; what was acknowledged before the kill is there."""
    supervisor = Supervisor(installation.home)
    store.put(f"{store.root}/kept", b"kept")
    before = supervisor.states()["store"].pid
    assert before is not None
    os.kill(before, signal.SIGKILL)
    stack_commands.up(installation.settings, [STORE])
    assert supervisor.states()["store"].pid != before
    assert store.get(f"{store.root}/kept") == b"kept"


@pytest.fixture
def own_installation() -> Iterator[Installation]:
    """A second stack, in a home whose path is too long for a socket."""
    with tempfile.TemporaryDirectory(prefix="modelyard-") as folder:
        installation = new_installation(Path(folder) / ("long-name-" * 9))
        yield installation
        stack_commands.down(installation.settings)


def test_down_ends_everything(own_installation: Installation):
    """After `down` no process is left, nor a socket; sockets of long homes live in a short place."""
    stack_commands.up(own_installation.settings, [STORE])
    socket = Path(short_path(own_installation.home, "control") + ".sock")
    assert socket.is_socket()
    assert not socket.is_relative_to(own_installation.home)
    family = orphans(own_installation.home)
    assert {process.name() for process in family} >= {"weed"}
    stack_commands.down(own_installation.settings)
    assert alive(family) == []
    assert not list(socket.parent.glob(socket.name.replace("control.sock", "*")))
    stack_commands.down(own_installation.settings)


@pytest.mark.soak
def test_down_ends_what_a_killed_supervisor_left(own_installation: Installation):
    """What outlives its supervisor does not outlive `down`; a new `up` in between is not needed."""
    stack_commands.up(own_installation.settings, [STORE])
    supervisor = Supervisor(own_installation.home)
    family = orphans(own_installation.home)
    daemon = psutil.Process(int(supervisor.pidfile.read_text()))
    daemon.kill()
    daemon.wait(5)
    assert not supervisor.is_running()
    stack_commands.down(own_installation.settings)
    assert alive(family) == []
    assert orphans(own_installation.home) == []


@pytest.mark.soak
def test_a_program_that_cannot_start_shows_its_log(own_installation: Installation):
    """The error carries the last words of the program, so nobody has to look for a file."""
    (own_installation.home / "store").mkdir()
    (own_installation.home / "store" / "filerldb2").write_text("this is no database")
    with pytest.raises(StackFailed, match=r"store gave up[\s\S]*store\.log:\n[\s\S]*filerldb2"):
        stack_commands.up(own_installation.settings, [STORE])


def test_clean_leaves_a_foreign_folder_alone(tmp_path: Path, settings: Settings):
    """A home that `up` did not make is not deleted."""
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(StackFailed, match="left as it is"):
        stack_commands.clean(settings.model_copy(update={"home": tmp_path}))
    assert (tmp_path / "thesis.txt").exists()


def _secrets_of(settings: Settings) -> list[str]:
    assert settings.s3_secret_key is not None
    assert settings.endpoint_admin_token is not None
    security = (settings.secrets_folder / "security.toml").read_text()
    keys = [line.split('"')[1] for line in security.splitlines() if line.startswith("key")]
    return [settings.s3_secret_key.get_secret_value(), settings.endpoint_admin_token.get_secret_value(), *keys]
