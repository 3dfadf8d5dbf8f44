"""Networks from a hub, where the installation names one (`MODELYARD_HUB_URL`): nothing is asked of any hub otherwise.

    python -m modelyard.hub owner/name revision folder pattern...

The client is Hugging Face's own, in a process of its own: it reads its settings from the environment once, and other
processes of ours are told to stay offline.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from modelyard.errors import ConfigError, HubUnavailable, MissingExtra, NotFound

PREFIX = "hub:"
ADDRESS = re.compile(r"^hub:([\w.-]+/[\w.-]+)@([\w.-]+)$")
DOWNLOAD_SECONDS = 3600.0
# How the process ends, besides 0.
ABSENT, UNREACHABLE, NO_CLIENT = 3, 4, 5


def download(address: str, field: str, hub_url: str | None, folder: Path, patterns: Sequence[str]) -> None:
    """Fetch some files of a repository into a folder.

    Args:
        address: ``hub:owner/name@revision``.
        field: the preset key that says so, for sentences.
        hub_url: the one hub that may be asked.

    Raises:
        ConfigError: no hub is named, or the address is none.
        NotFound: the hub has no such repository or revision, or keeps it from us.
        HubUnavailable: it does not answer, or the download broke.
        MissingExtra: the client is not installed.
    """
    if not hub_url:
        raise ConfigError(
            field, f"{address}: downloads are off; name a hub in MODELYARD_HUB_URL, or fetch the folder and name that"
        )
    said = ADDRESS.match(address)
    if said is None:
        raise ConfigError(field, f"{address!r} is no address on a hub: write hub:owner/name@revision, best a commit")
    named = {"HF_ENDPOINT": hub_url, "HF_HOME": str(folder / ".hub"), "HF_HUB_OFFLINE": "0"}
    quiet = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-m", "modelyard.hub", said[1], said[2], str(folder), *patterns]
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **named, **quiet},
            capture_output=True,
            text=True,
            timeout=DOWNLOAD_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise HubUnavailable(f"{address}: {hub_url} did not give it within {DOWNLOAD_SECONDS:g} s") from None
    words = (done.stderr.strip().splitlines() or [""])[-1]
    if done.returncode == ABSENT:
        raise NotFound(f"{field}: {hub_url} has no {said[1]} at {said[2]} for us: {words}")
    if done.returncode == UNREACHABLE:
        raise HubUnavailable(f"{address}: {hub_url} does not answer: {words}")
    if done.returncode == NO_CLIENT:
        raise MissingExtra("huggingface_hub", "transformers", f"{field} {address}")
    if done.returncode:
        raise HubUnavailable(f"{address}: the download from {hub_url} ended with status {done.returncode}: {words}")


def main(arguments: Sequence[str]) -> int:
    """Download with the settings of the environment; the last line of stderr says what went wrong."""
    repository, revision, folder, *patterns = arguments
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
    except ImportError:
        return NO_CLIENT
    try:
        snapshot_download(repository, revision=revision, local_dir=folder, allow_patterns=patterns)
    except (RepositoryNotFoundError, HfHubHTTPError) as failure:
        answered = getattr(failure.response, "status_code", 500)
        return _said(failure, ABSENT if answered in (401, 403, 404) else UNREACHABLE)
    except (LocalEntryNotFoundError, OSError) as failure:
        return _said(failure, UNREACHABLE)
    return 0


def _said(failure: Exception, status: int) -> int:
    words = " ".join(str(failure).split())[:300]
    sys.stderr.write(f"\n{words or type(failure).__name__}\n")
    return status


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
