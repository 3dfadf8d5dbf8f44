"""The endpoint as a real process on a free port."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from signal import SIGKILL, Signals
from typing import Any

import httpx
import psutil

from modelyard.settings import Settings

TOKEN = "let me in"
MAX_PORT = 55_535
PROJECT = Path(__file__).parents[2]


class Endpoint:
    """The parent with its router and workers; `start` after `kill` is a restart on the same home and port."""

    def __init__(self, settings: Settings, name: str, home: Path, **more: str) -> None:
        self._more = more  # settings of its own, by their variables
        self.name = name
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = home / "endpoint.log"
        self.client = httpx.Client(base_url=self.url, timeout=15, headers={"Authorization": f"Bearer {TOKEN}"})
        self._settings = settings
        self._home = home
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process, "start it first"
        return self._process

    def start(self, store_url: str | None = None) -> Endpoint:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "modelyard.serve"],
                env=self._environment(store_url or self._settings.store_url),
                cwd=self._home,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        until(self.answers, "the endpoint to listen")
        return self

    def answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            return self.client.get("/livez").status_code == 200
        except httpx.TransportError:
            return False

    def close(self) -> None:
        """End it the hard way if a test left it running."""
        self.client.close()
        if self.runs:
            self.end(SIGKILL)

    def status(self) -> dict[str, Any]:
        return self.client.get("/admin/status").raise_for_status().json()

    def notify(self, revision: int | None = None) -> None:
        named = {} if revision is None else {"revision": revision}
        self.client.post("/admin/notify", params=named).raise_for_status()

    def reach(self, revision: int) -> dict[str, Any]:
        """Tell it to look, and wait until it has tried the revision."""
        self.notify()
        return until(lambda: (status := self.status())["attempted"] >= revision and status, f"revision {revision}")

    def worker_pids(self) -> list[int]:
        versions = [version for model in self.status()["models"].values() for version in model["versions"]]
        return [version["worker_pid"] for version in versions if version["worker_pid"]]

    def router_pid(self) -> int | None:
        """The router that accepts now; None while there is none."""
        try:
            return httpx.get(f"{self.url}/admin/status", headers=self.client.headers, timeout=5).json()["router_pid"]
        except httpx.HTTPError:
            return None

    def end(self, number: Signals) -> int:
        """Send a signal to the parent, SIGKILL to its routers too, and wait for the end."""
        routers = psutil.Process(self.process.pid).children() if number == SIGKILL else []
        self.process.send_signal(number)
        for router in routers:
            router.kill()
        return self.process.wait(15)

    def kill(self) -> None:
        """kill -9, and wait until nothing of it answers any more: what is below it ends a moment later."""
        below = [self.status()["router_pid"], *self.worker_pids()]
        self.end(SIGKILL)
        until(lambda: not any(map(lives, below)), "the end of router and workers")

    def _environment(self, store_url: str) -> dict[str, str]:
        settings = self._settings
        secret = settings.s3_secret_key
        assert settings.s3_access_key
        assert secret
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("MODELYARD_")}
        return inherited | {
            "PYTHONPATH": str(PROJECT),
            "MODELYARD_HOME": str(self._home),
            "MODELYARD_BUCKET": settings.bucket,
            "MODELYARD_S3_ENDPOINT_URL": store_url,
            "MODELYARD_S3_ACCESS_KEY": settings.s3_access_key,
            "MODELYARD_S3_SECRET_KEY": secret.get_secret_value(),
            "MODELYARD_ENDPOINT_NAME": self.name,
            "MODELYARD_ENDPOINT_PORT": str(self.port),
            "MODELYARD_ENDPOINT_ADMIN_TOKEN": TOKEN,
            "MODELYARD_TRUSTED_KEYS": str(settings.trusted_keys_folder),
            **self._more,
        }


def until(condition: Callable[[], Any], what: str, seconds: float = 20) -> Any:
    """The condition's first true value."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"{what} did not happen within {seconds} s")


def lives(pid: int) -> bool:
    """Whether a process exists and is more than a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def free_port() -> int:
    """A port that nobody listens on, within what the settings admit."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            if (port := probe.getsockname()[1]) <= MAX_PORT:
                return port
