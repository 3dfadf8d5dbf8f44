"""KServe's own SDK, which wants other versions of libraries than we do, in an environment of its own."""

from __future__ import annotations

import json
import subprocess
import venv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from commands.kserve import inference_service
from modelyard.artifacts import ArtifactRef
from modelyard.settings import Settings
from modelyard.tracking import RegisteredVersion
from tests.serve.packages import ROWS, LinearModel
from tests.serve.processes import Endpoint

KSERVE = "kserve==0.21.0"
CLIENT, MANIFEST = (Path(__file__).with_name(f"kserve_{name}.py") for name in ("client", "manifest"))
INSTALL_SECONDS = 600


@pytest.fixture(scope="module")
def python_with_kserve(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter whose environment has the client; installed anew, so it takes a minute or two."""
    folder = tmp_path_factory.mktemp("kserve")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", KSERVE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    return python


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_kserves_client_is_answered(digits_endpoint: Endpoint, python_with_kserve: Path):
    """Health, readiness, inference in JSON and as binary tensors; a refusal reaches it as our sentence."""
    command = [str(python_with_kserve), str(CLIENT), digits_endpoint.url, json.dumps(ROWS.tolist())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["live"] is said["ready"] is said["model_ready"] is True
    expected = LinearModel(7).outputs(ROWS.astype(np.float32))
    for way in ("json", "binary"):
        assert said[way]["version"] == "7"
        assert np.allclose(said[way]["outputs"], expected, atol=1e-5)
        assert said[way]["label"] == [("ant", "bee", "cat")[best] for best in expected.argmax(axis=1)]
    assert "400" in said["refusal"]
    assert "features" in said["refusal"]


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_an_inference_service_fits_kserves_schema(settings: Settings, python_with_kserve: Path):
    """What `modelyard kserve` prints has no key that the SDK's types do not know, nor a value of another type."""
    ref = ArtifactRef(uri="s3://modelyard/x", digest="0" * 64, kind="compressed")
    document = inference_service(
        settings.model_copy(update={"s3_endpoint_url": "https://s3.example.com"}),
        RegisteredVersion(model_name="digits", version="7", artifact=ref, verdict=ref),
        "default-digits-7",
        image="modelyard:latest",
        canary_percent=10,
        credentials="modelyard",
        trusted_keys="modelyard-trusted-keys",
    )

    def problems(document: dict[str, Any]) -> list[str]:
        command = [str(python_with_kserve), str(MANIFEST)]
        text = json.dumps(document)
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    assert problems(document) == []
    document["spec"]["predictor"] |= {"canaryPercent": 10, "canaryTrafficPercent": "ten"}
    assert problems(document) == [
        "document.spec.predictor has no canaryPercent",
        "document.spec.predictor.canaryTrafficPercent is no int: 'ten'",
    ]
