"""Load on an HTTP server from a process of its own: `wrk` where it is installed, else our `benchmarks.load_client`.

Closed loop: each connection sends its next request when the last one is answered.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from commands.environment import PROJECT

# `done` is called once at the end; latencies are in microseconds there.
WRK_SCRIPT = """
wrk.method = "POST"
{headers}
local file = io.open("{path}", "rb")
wrk.body = file:read("*a")
file:close()
done = function(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format('\\n{{"answered": %d, "seconds": %f, "failed": %d, "p50_ms": %f, "p99_ms": %f}}\\n',
    summary.requests, summary.duration / 1e6,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
"""
MARGIN_SECONDS = 30
JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True, kw_only=True)
class Load:
    """What a stretch of load came to. ``failed`` counts answers other than 200, and none at all."""

    answered: int
    seconds: float
    failed: int
    p50_ms: float
    p99_ms: float

    @property
    def per_second(self) -> float:
        return self.answered / self.seconds

    def as_json(self) -> str:
        return json.dumps(asdict(self))


def generator() -> str:
    """The name of the load generator in use."""
    return "wrk" if shutil.which("wrk") else "benchmarks.load_client"


def fire(
    url: str, body: bytes, *, connections: int, seconds: float, scratch: Path, headers: Mapping[str, str] = JSON
) -> Load:
    """Post the same body again and again.

    Raises:
        RuntimeError: an answer failed: a rate of refusals would look splendid.
    """
    path = scratch / "body"
    path.write_bytes(body)
    command = _wrk(url, path, headers, connections, seconds)
    if command is None:
        command = [
            sys.executable, "-m", "benchmarks.load_client", url, str(path), json.dumps(headers), str(connections),
            str(seconds),
        ]  # fmt: skip
    done = subprocess.run(
        command, cwd=PROJECT, capture_output=True, text=True, timeout=seconds + MARGIN_SECONDS, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}:\n{done.stdout[-1000:]}{done.stderr[-2000:]}")
    load = Load(**json.loads(done.stdout.strip().splitlines()[-1]))
    if load.failed or not load.answered:
        raise RuntimeError(f"{url}: {load.failed} of {load.answered} requests failed")
    return load


def _wrk(url: str, body: Path, headers: Mapping[str, str], connections: int, seconds: float) -> list[str] | None:
    if not shutil.which("wrk"):
        return None
    script = body.with_name("post.lua")
    lines = [f'wrk.headers["{name}"] = "{value}"' for name, value in headers.items()]
    script.write_text(WRK_SCRIPT.format(headers="\n".join(lines), path=body))
    # Whole seconds only; one thread is enough for what two cores can serve.
    return [
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{max(1, round(seconds))}s",
        "--timeout",
        "10s",
        "-s",
        str(script),
        url,
    ]
