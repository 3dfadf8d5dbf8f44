"""The life of the stack: up, down, what it looks like, what it said.

Store, MLflow and Prefect start side by side; Prefect's objects are applied as soon as its API answers, the worker
follows them, the endpoint follows the store. A part that a setting places elsewhere is only checked.
"""

from __future__ import annotations

import fcntl
import shutil
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil

from commands import ports, prefect_objects, readiness, secrets
from commands.parts import ENDPOINT, MLFLOW, PARTS, PREFECT, STORE, WORKER, Part
from commands.supervision import ProgramState, Supervisor
from modelyard.errors import StackFailed
from modelyard.settings import Settings

LOCK_SECONDS = 240.0  # another `modelyard up` may be busy with a first start
STOP_SECONDS = 25.0
# Who must be ready before whom.
NEEDS: dict[str, Part] = {WORKER.name: PREFECT, ENDPOINT.name: STORE}
# Who uses others stops before them, so that its last words are heard.
STOP_WAVES = ((WORKER.name, ENDPOINT.name), (PREFECT.name, MLFLOW.name), (STORE.name,))


@dataclass(frozen=True, kw_only=True)
class PartReady:
    """A part that answers as it should, and the seconds it took."""

    part: Part
    address: str
    seconds: float
    was_running: bool


@dataclass(frozen=True, kw_only=True)
class PartStatus:
    """One line of `modelyard status`; memory counts the whole process tree, uptime is in seconds."""

    part: str
    state: str
    pid: int | None
    address: str
    rss_bytes: int | None
    uptime_seconds: float | None
    problem: str | None

    def as_json(self) -> dict[str, object]:
        return asdict(self)


Report = Callable[[PartReady], None]


def up(settings: Settings, wanted: Sequence[Part] = PARTS, report: Report | None = None) -> Settings:
    """Bring these parts up and wait until each does its work; parts already up are left alone.

    Returns:
        The settings, completed with the secrets that were made.

    Raises:
        PortTaken: before anything is started.
        StackFailed: a part did not become ready; the others stay up, so that one can look.
        StoreRefused: the store does not take our credentials.
    """
    settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _only_one(settings.home / "up.lock"):
        supervisor = Supervisor(settings.home)
        alive = {name for name, program in supervisor.states().items() if program.is_alive}
        settings = secrets.ensure(settings, store_is_running=STORE.name in alive)
        ports.check_free(settings, [part for part in _embedded(settings, wanted) if part.name not in alive])
        supervisor.ensure(settings)
        _Start(settings, supervisor, report).run(wanted)
    return settings


def down(settings: Settings) -> None:
    """End every process of the stack, whoever is its parent by now. Returns at once when there is none."""
    Supervisor(settings.home).shutdown(STOP_WAVES, STOP_SECONDS)


def clean(settings: Settings) -> None:
    """Take the stack down and delete its folder with all data.

    Raises:
        StackFailed: the folder is not one that `modelyard up` made.
    """
    home = settings.home
    if home.is_dir() and any(home.iterdir()) and not (home / "up.lock").is_file():
        raise StackFailed(f"{home} was not made by `modelyard up`; it is left as it is")
    down(settings)
    shutil.rmtree(home, ignore_errors=True)


def status(settings: Settings) -> list[PartStatus]:
    """Every part, embedded or not, asked now."""
    programs = Supervisor(settings.home).states()
    with ThreadPoolExecutor(len(PARTS)) as pool:
        return list(pool.map(lambda part: _part_status(settings, part, programs.get(part.name)), PARTS))


def log_path(settings: Settings, part: Part) -> Path:
    return settings.home / "logs" / f"{part.name}.log"


class _Start:
    """One run of `up`: each part in a thread of its own, waiting for the part it needs."""

    def __init__(self, settings: Settings, supervisor: Supervisor, report: Report | None) -> None:
        self._settings = settings
        self._supervisor = supervisor
        self._report = report
        self._ready: dict[str, Future[PartReady]] = {}

    def run(self, wanted: Sequence[Part]) -> None:
        with ThreadPoolExecutor(len(PARTS)) as pool:
            # In the order of PARTS, so that what a part needs is submitted before it.
            for part in (part for part in PARTS if part in wanted):
                self._ready[part.name] = pool.submit(self._start, part)
            for done in as_completed(self._ready.values()):
                ready = done.result()
                if self._report:
                    self._report(ready)

    def _start(self, part: Part) -> PartReady:
        needed = NEEDS.get(part.name)
        if needed and needed.name in self._ready:
            self._ready[needed.name].result()
        embedded = part.is_embedded(self._settings)
        program = self._program(part) if embedded else None
        was_running = bool(program and program.is_alive)
        began = time.monotonic()
        since = datetime.fromtimestamp(program.started, UTC) if was_running and program and program.started else None
        if embedded and not was_running:
            since = datetime.now(UTC)
            self._supervisor.start(part.name)
        state = (lambda: self._program(part)) if embedded else (lambda: None)
        readiness.wait_for(part.name, self._settings, state, since)
        if part is PREFECT:
            prefect_objects.ensure(self._settings)
        return PartReady(
            part=part,
            address=part.address(self._settings),
            seconds=time.monotonic() - began,
            was_running=was_running,
        )

    def _program(self, part: Part) -> ProgramState | None:
        return self._supervisor.states().get(part.name)


def _embedded(settings: Settings, wanted: Sequence[Part]) -> list[Part]:
    return [part for part in wanted if part.is_embedded(settings)]


def _part_status(settings: Settings, part: Part, program: ProgramState | None) -> PartStatus:
    embedded = part.is_embedded(settings)
    is_up = bool(program and program.is_alive) or not embedded
    problem = readiness.failing_check(part.name, settings) if is_up else None
    return PartStatus(
        part=part.name,
        state=_state_word(embedded, program, problem),
        pid=program.pid if program else None,
        address=part.address(settings),
        rss_bytes=_tree_rss_bytes(program.pid) if program and program.pid else None,
        uptime_seconds=time.time() - program.started if program and program.started else None,
        problem=problem or (program.problem if program and program.problem else None),
    )


def _state_word(embedded: bool, program: ProgramState | None, problem: str | None) -> str:
    if embedded and not (program and program.is_alive):
        return program.state.lower() if program else "stopped"
    if problem:
        return "not ready"
    return "ready" if embedded else "ready (outside)"


def _tree_rss_bytes(pid: int) -> int | None:
    try:
        root = psutil.Process(pid)
        return sum(_rss_bytes(process) for process in [root, *root.children(recursive=True)])
    except psutil.Error:
        return None


def _rss_bytes(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.Error:
        return 0  # it ended since the list was made


@contextmanager
def _only_one(path: Path) -> Generator[None]:
    """Two `up` at once take turns.

    Raises:
        StackFailed: the other one took too long.
    """
    deadline = time.monotonic() + LOCK_SECONDS
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise StackFailed(f"another `modelyard up` holds {path} since {LOCK_SECONDS:.0f} s") from None
                time.sleep(0.1)
        yield
