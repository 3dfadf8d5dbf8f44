"""The browser of this machine, for tests of what people look at."""

from __future__ import annotations

import os
import shutil

import pytest

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")


def chromium() -> str:
    """Its path; the test is skipped with the reason where there is none, and fails in CI."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        missing = f"no Chromium is installed, none of: {', '.join(PROGRAMS)}"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    return program
