"""KServe's own inference client, which wants other versions of libraries than we do, in an environment of its own."""

from __future__ import annotations

import json
import subprocess
import venv
from pathlib import Path

import numpy as np
import pytest

from tests.serve.packages import ROWS, LinearModel
from tests.serve.processes import Endpoint

KSERVE = "kserve==0.21.0"
CLIENT = Path(__file__).with_name("kserve_client.py")
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
