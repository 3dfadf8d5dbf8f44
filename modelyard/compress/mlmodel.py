"""The `MLmodel` file: what makes a package folder an MLflow model."""

from __future__ import annotations

import yaml

# MLflow warns when the running Python's minor version is another. The oldest one supported, not the one at hand:
# the package holds no code, so it does not depend on it, and its digest must not either.
PYTHON_VERSION = "3.11"


def mlmodel_yaml() -> bytes:
    """The file's content; no time, id or machine in it. The loader is `modelyard.model_package._load_pyfunc`."""
    flavor = {"loader_module": "modelyard.model_package", "data": ".", "python_version": PYTHON_VERSION}
    return yaml.safe_dump({"flavors": {"python_function": flavor}}, sort_keys=True).encode()
