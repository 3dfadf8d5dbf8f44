"""One model version as an actor of a Ray cluster: `RayPool` starts it, on whichever node there is room.

What it loads it fetches by digest, from the bucket or what its machine has kept, and checks as the router does; what it answers
is made by the code of `worker`. A call returns what a worker process would have written: a kind and its payload.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
from collections.abc import Generator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Catalog
from modelyard.code_version import code_version, installed
from modelyard.errors import ConfigError
from modelyard.serve.cache import Cache
from modelyard.serve.verifier import Verifier
from modelyard.serve.wire import Kind
from modelyard.serve.worker import LoadedModel, failed, loaded
from modelyard.settings import Settings, load_settings
from modelyard.storage import Store

ENGINES = ["numpy", "onnxruntime", "openvino", "torch"]
KEPT_PACKAGES = 16  # on the disk of a node, by their last use


class Replica:
    """A version, once `load` has returned; one call is answered at a time."""

    def __init__(self) -> None:
        self._model: LoadedModel | None = None

    def load(self, artifact: str, form: str, code: str) -> tuple[int, bytes]:
        """Fetch, verify, load and warm.

        Args:
            artifact: a reference to the package, as JSON.
            code: `replica_code` of the router.
        """
        try:
            if replica_code() != code:
                raise ConfigError(  # noqa: TRY301 (told as whatever else goes wrong here)
                    "MODELYARD_ENDPOINT_RAY",
                    f"the Ray node {os.uname().nodename} runs other code of Modelyard, or other releases of"
                    f" {', '.join(ENGINES)}: install the same",
                )
            folder = _fetched(ArtifactRef.model_validate_json(artifact), load_settings())
        except Exception as failure:  # noqa: BLE001 (only a sentence can cross)
            return int(Kind.FAILED), failed(failure)
        self._model, kind, payload = loaded(folder, form)
        return int(kind), payload

    def answer(self, kind: int, payload: bytes) -> tuple[int, bytes]:
        """A call, packed as for a worker process, to its answer."""
        assert self._model
        told, answer = self._model.answered(Kind(kind), payload)
        return int(told), answer

    def watch(self) -> None:
        """Never returns: whoever waits for it learns at once that this process is gone."""
        threading.Event().wait()


def replica_code() -> str:
    """Version of the code and the engines that answers are made by."""
    engines = installed(ENGINES)
    return code_version("modelyard.serve.worker", engines) + "".join(f" {name} {version(name)}" for name in engines)


def _fetched(ref: ArtifactRef, settings: Settings) -> Path:
    """The package on this machine's disk, verified. One process of a machine at a time."""
    home = settings.home / "ray-replicas"
    verifier = Verifier(settings.trusted_keys_folder) if settings.endpoint_signatures == "required" else None
    cache = Cache(home / "packages", Catalog(Store(settings)), verifier)
    try:
        with _held(home):
            folder = cache.ensure(ref)
            os.utime(folder)
            _forget_unused(home / "packages")
            return folder
    finally:
        cache.close()


def _forget_unused(packages: Path) -> None:
    """Processes that have loaded a package go on without its folder."""
    by_use = sorted(packages.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
    for folder in by_use[KEPT_PACKAGES:]:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _held(home: Path) -> Generator[None]:
    """Who waits too long here is given up by its router."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
