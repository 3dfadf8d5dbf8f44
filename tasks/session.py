"""The clients of this process. Flows and tasks are entry points: here, and only here, they read the settings."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from modelyard.catalog import Catalog
from modelyard.settings import Settings, load_settings
from modelyard.storage import Store
from modelyard.tracking import Tracker

GIT_SECONDS = 5


@dataclass(frozen=True, kw_only=True)
class Session:
    """Settings and clients, made once a process. `commit` is the code's, where it is a git checkout."""

    settings: Settings
    store: Store
    catalog: Catalog
    tracker: Tracker
    commit: str | None


@cache
def session() -> Session:
    """This process's session."""
    settings = load_settings()
    store = Store(settings)
    return Session(settings=settings, store=store, catalog=Catalog(store), tracker=Tracker(settings), commit=_commit())


def _commit() -> str | None:
    """From `MODELYARD_COMMIT`, which an image sets, or from git."""
    given = os.environ.get("MODELYARD_COMMIT")
    if given:
        return given
    folder = Path(__file__).resolve().parent
    try:
        asked = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=GIT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return asked.stdout.strip() or None if asked.returncode == 0 else None
