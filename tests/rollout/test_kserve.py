"""The InferenceService that `modelyard kserve` prints, and the endpoint that it describes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from commands.environment import PROJECT
from commands.main import app
from modelyard.revisions import latest_revision
from tests.conftest import Installation
from tests.rollout.yard import Yard
from tests.serve.processes import free_port, until

KIND = ("serving.kserve.io/v1beta1", "InferenceService")


@pytest.fixture
def yard(stack: Installation, tmp_path: Path) -> Iterator[Yard]:
    made = Yard(stack, "clustered", {"kind": "all_at_once"}, tmp_path / "flows.log")
    yield made
    made.close()


def printed(*words: str, status: int = 0) -> Any:
    done = CliRunner().invoke(app, ["kserve", *words])
    assert done.exit_code == status, done.output
    return yaml.safe_load(done.output) if status == 0 else done.output + done.stderr


def test_a_version_becomes_an_inference_service(yard: Yard, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The container it describes serves that version and no other, whatever the installation goes on to."""
    monkeypatch.setenv("MODELYARD_S3_ENDPOINT_URL", yard.settings.store_url)
    for number in (1, 2):
        yard.roll_out(yard.publish(number))
    document = printed("clustered/1", "--canary-percent", "10", "--image", "registry.example.com/modelyard:1")
    assert (document["apiVersion"], document["kind"]) == KIND
    predictor = document["spec"]["predictor"]
    assert predictor["canaryTrafficPercent"] == 10
    [container] = predictor["containers"]
    given = {entry["name"]: entry["value"] for entry in container["env"]}
    assert given["MODELYARD_ENDPOINT_NAME"] == "default-clustered-1"
    printed("clustered/1")
    newest = latest_revision(yard.store, "default-clustered-1")
    assert newest
    assert newest.number == 1, "the same again writes nothing"
    assert answering(yard, container["command"], given, tmp_path) == "1"
    assert yard.state().stable.version == "2"


def answering(yard: Yard, command: list[str], given: dict[str, str], home: Path) -> str:
    """The version that the container's program answers with, on this machine's ports and folders."""
    secret, port = yard.settings.s3_secret_key, free_port()
    assert secret
    here = {
        "MODELYARD_HOME": str(home),
        "MODELYARD_HOST": "127.0.0.1",
        "MODELYARD_ENDPOINT_PORT": str(port),
        "MODELYARD_TRUSTED_KEYS": str(yard.settings.trusted_keys_folder),
        "MODELYARD_S3_ACCESS_KEY": yard.settings.s3_access_key or "",
        "MODELYARD_S3_SECRET_KEY": secret.get_secret_value(),
        "PYTHONPATH": str(PROJECT),
    }
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MODELYARD_")}
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, *command[1:]], env=inherited | given | here, cwd=home, stdout=log, stderr=log
        )
    try:
        import httpx

        def ask() -> str:
            try:
                answer = httpx.get(f"http://127.0.0.1:{port}/v2/models/{yard.model}", trust_env=False)
            except httpx.HTTPError:
                return ""
            return answer.headers.get("Modelyard-Model-Version", "")

        return until(ask, "an answer")
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.parametrize(
    ("name", "words"), [("clustered", "neither model@alias nor"), ("clustered@nobody", "no version with the alias")]
)
def test_what_is_not_registered_is_no_service(
    stack: Installation, monkeypatch: pytest.MonkeyPatch, name: str, words: str
):
    """By the name that was given."""
    monkeypatch.setenv("MODELYARD_S3_ENDPOINT_URL", stack.settings.store_url)
    assert words in printed(name, status=1)


def test_the_embedded_store_is_out_of_a_clusters_reach(yard: Yard, stack: Installation):
    """It is said before anything is written."""
    if yard.state() is None:
        yard.roll_out(yard.publish(1))
    assert "MODELYARD_S3_ENDPOINT_URL" in printed("clustered@champion", status=1)
