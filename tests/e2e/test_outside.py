"""Servers that somebody else runs, in the place of the embedded ones."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from commands import stack as stack_commands
from commands.parts import MLFLOW, PREFECT, STORE
from modelyard.settings import ENV_PREFIX
from tests.conftest import Installation, free_ports, new_installation

pytestmark = pytest.mark.soak
FOREIGN = (ENV_PREFIX, "PREFECT_", "MLFLOW_", "AWS_")


@pytest.fixture
def servers() -> Iterator[Installation]:
    """A store, an MLflow and a Prefect server of another installation."""
    installation = new_installation()
    stack_commands.up(installation.settings, [STORE, MLFLOW, PREFECT])
    yield installation
    stack_commands.down(installation.settings)
    shutil.rmtree(installation.home)


@pytest.fixture
def variables(servers: Installation) -> Iterator[dict[str, str]]:
    """The environment of a person who was given three addresses and a pair of keys."""
    theirs, home = servers.settings, Path(tempfile.mkdtemp(prefix="modelyard-", dir="/tmp"))
    secret = theirs.s3_secret_key
    assert secret
    kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    yield kept | {
        "MODELYARD_ENV_FILE": os.devnull,
        "MODELYARD_HOME": str(home),
        "MODELYARD_S3_ENDPOINT_URL": theirs.store_url,
        "MODELYARD_S3_ACCESS_KEY": str(theirs.s3_access_key),
        "MODELYARD_S3_SECRET_KEY": secret.get_secret_value(),
        "MODELYARD_BUCKET": "a-bucket-of-ours",
        "MODELYARD_PREFECT_API_URL": theirs.api_url,
        "MODELYARD_MLFLOW_TRACKING_URI": theirs.tracking_url,
        "MODELYARD_ENDPOINT_PORT": str(free_ports(1)[0]),
    }
    shutil.rmtree(home)


def test_outside_servers_replace_the_embedded_ones(servers: Installation, variables: dict[str, str]):
    """With three addresses as settings only worker and endpoint are started here, and a run goes the whole way."""

    def modelyard(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "commands.main", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, env=variables)

    try:
        up = modelyard("up")
        assert up.returncode == 0, up.stderr
        states = {part["part"]: part["state"] for part in json.loads(modelyard("status", "--json").stdout)}
        outside = dict.fromkeys(("store", "mlflow", "prefect"), "ready (outside)")
        assert states == {**outside, "worker": "ready", "endpoint": "ready"}
        ran = modelyard("run", "digits")
        assert ran.returncode == 0, ran.stdout + ran.stderr
        last_run = json.loads((Path(variables["MODELYARD_HOME"]) / "last-run.json").read_text())
        assert all(ref["uri"].startswith("s3://a-bucket-of-ours/") for ref in last_run["artifacts"].values())
    finally:
        modelyard("down")
    states = {part.part: part.state for part in stack_commands.status(servers.settings)}
    assert {states["store"], states["mlflow"], states["prefect"]} == {"ready"}
