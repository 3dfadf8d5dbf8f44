"""The requests in docs/endpoint.md, as typed, at a real endpoint."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.serve.packages import COLUMNS, ROWS
from tests.serve.processes import PROJECT, Endpoint

PAGE = (PROJECT / "docs" / "endpoint.md").read_text()
COMMANDS = re.findall(r"^\$ (.*\bcurl .*)$", PAGE, re.MULTILINE)


@pytest.fixture(scope="module")
def endpoint(digits_endpoint: Endpoint) -> Endpoint:
    return digits_endpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the files lie that the page speaks of; the JSON one is the page's own."""
    folder = tmp_path_factory.mktemp("documented")
    [example] = re.findall(r"^```json\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    (folder / "request.json").write_text(example)
    lines = [",".join(COLUMNS), *(",".join(map(str, row)) for row in ROWS.tolist())]
    (folder / "rows.csv").write_text("\n".join(lines))
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_documented_requests_are_answered(endpoint: Endpoint, folder: Path, command: str):
    """Each curl line of the page gets JSON that is not an error."""
    typed = command.replace("http://127.0.0.1:8090", endpoint.url)
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", typed], cwd=folder, capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == 0, (typed, done.stdout, done.stderr)
    assert "error" not in json.loads(done.stdout)


def test_the_page_has_examples():
    """So that the test above cannot pass by finding nothing."""
    assert len(COMMANDS) >= 3
