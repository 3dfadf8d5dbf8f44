"""What starting costs: a command line must be quick, a rank soon at its first step, and the endpoint small."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"torch", "onnx", "onnxruntime", "matplotlib", "mlflow", "prefect", "sklearn"}
CONTROL_PLANE = {"boto3", "botocore", "s3fs"}
UNSERVED = {"pandas", "pyarrow", "model_signing"}


@pytest.mark.parametrize(
    ("module", "avoided"),
    [
        ("modelyard.presets", HEAVY | CONTROL_PLANE),
        ("modelyard.train.rank", HEAVY - {"torch"} | CONTROL_PLANE | UNSERVED | {"transformers", "peft"}),
        ("modelyard.serve.router", HEAVY | CONTROL_PLANE | UNSERVED),
        ("modelyard.serve.program", HEAVY | CONTROL_PLANE | UNSERVED),
        ("modelyard.serve.worker", HEAVY - {"onnxruntime"} | CONTROL_PLANE | UNSERVED | {"obstore"}),
    ],
)
def test_an_import_stays_light(module: str, avoided: set[str]):
    """Forms and presets are checked without what trains and converts; who serves needs neither frames nor boto3, and a
    rank frames only where it prepares the rows of a table."""
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not avoided & set(loaded)
