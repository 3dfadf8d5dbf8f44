"""Artifacts on the local disk, so that the endpoint can start and serve while the bucket is away.

    <folder>/<digest>/manifest.json and the files it names

A cached artifact is used only after its manifest's digest and each file's sha256 were compared again; a damaged one
is fetched anew.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath
from uuid import uuid4

from pydantic import ValidationError

from modelyard.artifacts import ArtifactRef, Manifest
from modelyard.catalog import Catalog, file_sha256
from modelyard.errors import DataError, NotFound

logger = logging.getLogger(__name__)

_MANIFEST = "manifest.json"


class Cache:
    """Verified copies of artifacts, by digest."""

    def __init__(self, folder: Path, catalog: Catalog) -> None:
        self._folder = folder
        self._catalog = catalog

    def ensure(self, ref: ArtifactRef, names: Sequence[str] | None = None) -> Path:
        """The folder with the artifact's files (all, unless named), verified.

        Raises:
            StoreUnavailable: it is not cached, and the bucket is away.
            NotFound, DigestMismatch: the bucket does not hold what the reference promises.
        """
        folder = self._folder / ref.digest
        problem = _problem(folder, ref, names)
        if problem is None:
            return folder
        if folder.exists():
            logger.warning("%s: %s; fetching it again", folder, problem)
        return self._fetch(ref, folder, names)

    def prune(self, wanted: Collection[str]) -> None:
        """Delete what is not among these digests, and what a killed fetch left."""
        for entry in self._folder.glob("*"):
            if entry.name not in wanted:
                shutil.rmtree(entry, ignore_errors=True)

    def _fetch(self, ref: ArtifactRef, folder: Path, names: Sequence[str] | None) -> Path:
        _refuse_escaping(self._catalog.manifest(ref))
        partial = folder.with_name(f"{folder.name}.{uuid4().hex}")
        partial.mkdir(parents=True)
        try:
            manifest = self._catalog.fetch(ref, partial, names)
            (partial / _MANIFEST).write_text(manifest.model_dump_json())
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return folder


def _problem(folder: Path, ref: ArtifactRef, names: Sequence[str] | None) -> str | None:
    """Why the cached copy cannot be used, or None."""
    try:
        manifest = Manifest.model_validate_json((folder / _MANIFEST).read_bytes())
    except (OSError, ValidationError):
        return "no readable manifest"
    if manifest.digest != ref.digest:
        return "its manifest was altered"
    for name in manifest.content.files if names is None else names:
        path, entry = folder / name, manifest.content.files.get(name)
        if entry is None:
            raise NotFound(f"{ref}: has no file {name!r}")
        if not path.is_file() or file_sha256(path) != entry.sha256:
            return f"{name} is missing or damaged"
    return None


def _refuse_escaping(manifest: Manifest) -> None:
    """A manifest comes from the bucket: its names must stay within the folder."""
    for name in manifest.content.files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or name == _MANIFEST:
            raise DataError(f"the artifact's manifest names a file {name!r}, which no artifact may hold")
