"""The command line as a person meets it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from commands.main import app
from modelyard.storage import Store
from tests.conftest import Installation

PROJECT = Path(__file__).resolve().parent.parent.parent


def modelyard(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `modelyard` in a process of its own, with the session's environment."""
    command = [sys.executable, "-m", "commands.main", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), **variables}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)


def test_every_command_explains_itself():
    """`modelyard --help` lists each command with a sentence."""
    shown = modelyard("--help")
    assert shown.returncode == 0
    for command in app.registered_commands:
        name = getattr(command.callback, "__name__", "?")
        assert name in shown.stdout
        assert getattr(command.callback, "__doc__", None), name


@pytest.mark.parametrize("variables", [{}, {"MODELYARD_LOG_LEVEL": "DEBUG"}], ids=["usually", "debugging"])
def test_an_error_is_one_paragraph(variables: dict[str, str]):
    """Exit status 1, the sentence on stderr, and a traceback only for those who asked."""
    failed = modelyard("up", "kitchen", **variables)
    assert failed.returncode == 1
    assert "'kitchen' is not a part of the stack" in failed.stderr
    assert failed.stdout == ""
    assert ("Traceback" in failed.stderr) is bool(variables)


def test_a_bad_setting_is_one_paragraph_too():
    """Settings are read inside the command, so their errors look like all others."""
    failed = modelyard("status", MODELYARD_PREFECT_PORT="many")
    assert failed.returncode == 1
    assert "MODELYARD_PREFECT_PORT" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_a_rollback_of_an_unknown_preset_creates_no_run():
    """In a hurry a sentence at once helps more than a run that fails; a file's own path is taken, as `modelyard run` does."""
    failed = modelyard("rollback", "no-such.yaml", MODELYARD_PREFECT_API_URL="http://127.0.0.1:9/api")
    assert failed.returncode == 1
    assert "preset: 'no-such.yaml' is not there; known: digits" in failed.stderr


def test_status_for_programs(store: Store):
    """`status --json` is JSON on stdout whatever the state of the stack."""
    parts = json.loads(modelyard("status", "--json").stdout)
    assert [part["part"] for part in parts] == ["store", "mlflow", "prefect", "worker", "endpoint"]
    assert parts[0]["state"] == "ready"


def test_logs_of_one_part(store: Store, installation: Installation):
    """`logs store -n 3` prints the last three lines of its file."""
    shown = modelyard("logs", "store", "-n", "3")
    assert shown.returncode == 0
    assert len(shown.stdout.splitlines()) == 3
