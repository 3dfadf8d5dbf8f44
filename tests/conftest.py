"""One real installation for the whole test session: its own home folder, free ports, no setting of the developer's.

Its address is fixed before any test module is imported, because Prefect reads its settings at import. Programs start
when a fixture asks: `store` starts SeaweedFS alone, `stack` all of it, in the same home. The session takes it down.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from commands import environment, ports, secrets
from commands import stack as stack_commands
from commands.parts import STORE
from commands.supervision import orphans
from modelyard.settings import ENV_PREFIX, Settings, load_settings
from modelyard.storage import Store

if TYPE_CHECKING:
    from xdist.scheduler import LoadScopeScheduling

PORT_FIELDS = tuple(field for field in Settings.model_fields if field.endswith("_port"))
INSTALLATION = pytest.StashKey["Installation"]()
# Below the ports that the kernel hands out, and so are their gRPC twins.
PORTS = range(15_000, 22_000)
WORKERS = 4
NICENESS = 5
# Files of few tests that take long: begun last, as by their number of tests, they would be waited for.
LONG = ("tests/train/test_stage.py", "tests/train/test_language.py", "tests/train/test_regression.py")
GIVEN: set[int] = set()
# Tests of the whole stack: files and folders.
NEED_STACK = ("tests/e2e/", "tests/commands/test_stack.py", "tests/rollout/", "tests/test_tracking.py")


@dataclass(frozen=True, kw_only=True)
class Installation:
    """Settings with every secret, and the folder that holds everything."""

    settings: Settings
    home: Path


def pytest_configure(config: pytest.Config) -> None:
    if config.option.__dict__.get("numprocesses"):
        return  # the tests run in processes of their own, each with its own installation
    for variable in [name for name in os.environ if name.startswith((ENV_PREFIX, "PREFECT_", "MLFLOW_", "AWS_"))]:
        del os.environ[variable]
    os.environ[ENV_PREFIX + "ENV_FILE"] = os.devnull
    installation = new_installation()
    environment.apply(installation.settings)
    config.stash[INSTALLATION] = installation


def pytest_unconfigure(config: pytest.Config) -> None:
    if installation := config.stash.get(INSTALLATION, None):
        stack_commands.down(installation.settings)
        shutil.rmtree(installation.home, ignore_errors=True)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Where several processes share the tests, one takes all that need the whole stack, so that it is started once.
    The others take the rest, a file at a time."""
    from xdist.scheduler import LoadScopeScheduling

    class ByStackThenFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "stack" if nodeid.startswith(NEED_STACK) else nodeid.partition("::")[0]

    config.option.loadscopereorder = False  # `pytest_collection_modifyitems` has put them in order
    return ByStackThenFile(config, log)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """The tests of the stack take longest, one after the other: processes that do others stand back for them."""
    if "PYTEST_XDIST_WORKER" in os.environ and not item.nodeid.startswith(NEED_STACK):
        os.nice(max(0, NICENESS - os.nice(0)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "stack" in getattr(item, "fixturenames", ()) and not item.nodeid.startswith(NEED_STACK):
            raise pytest.UsageError(f"{item.nodeid} needs the stack: name its file or folder in {__name__}.NEED_STACK")
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: (not item.nodeid.startswith(NEED_STACK), not item.nodeid.startswith(LONG)))


def new_installation(home: Path | None = None) -> Installation:
    """A home folder with secrets and free ports; nothing runs yet. Its path is short: sockets live below it."""
    home = home or Path(tempfile.mkdtemp(prefix="modelyard-", dir="/tmp"))
    settings = load_settings(home=home, **dict(zip(PORT_FIELDS, free_ports(len(PORT_FIELDS)), strict=True)))
    return Installation(settings=secrets.ensure(settings, store_is_running=False), home=settings.home)


def free_ports(count: int) -> list[int]:
    """Ports that nobody uses, and that no other process of this test session draws from."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    found = ports.free_ports(count, [port for port in PORTS[worker % WORKERS :: WORKERS] if port not in GIVEN])
    GIVEN.update(found)
    return found


def alive(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those that still run; a zombie has ended, and only waits for init to notice."""
    return [process for process in processes if _is_alive(process)]


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture(scope="session")
def installation(pytestconfig: pytest.Config) -> Iterator[Installation]:
    """The session's installation; what of it runs is up to the other fixtures."""
    installation = pytestconfig.stash[INSTALLATION]
    yield installation
    stack_commands.down(installation.settings)
    assert not orphans(installation.home), "a process of the embedded stack outlived `down`"


@pytest.fixture(scope="session")
def settings(installation: Installation) -> Settings:
    return installation.settings


@pytest.fixture(scope="session")
def store(installation: Installation) -> Store:
    """The real embedded store, alone, with its bucket."""
    stack_commands.up(installation.settings, [STORE])
    return Store(installation.settings)


@pytest.fixture(scope="session")
def stack(installation: Installation, store: Store) -> Installation:
    """The whole embedded stack, ready, with Prefect's objects and deployments applied."""
    stack_commands.up(installation.settings)
    return installation
