"""Artifacts on the local disk, so that the endpoint can start and serve while the bucket is away.

    <folder>/<digest>/manifest.json     byte for byte as in the bucket
    <folder>/<digest>/signatures/       of the manifest
    <folder>/<digest>/...               the files it names

A cached artifact is used only after its signature, its manifest's digest and each file's sha256 were checked again; a
damaged one is fetched anew.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Collection, Sequence
from itertools import islice
from pathlib import Path, PurePosixPath
from uuid import uuid4

from pydantic import ValidationError

from modelyard.artifacts import ArtifactRef, Manifest
from modelyard.catalog import Catalog, file_sha256
from modelyard.errors import DataError, DigestMismatch, NotFound, SignatureRefused
from modelyard.serve.verifier import Verifier
from modelyard.signing.verify import MANIFEST_FILE, MAX_BUNDLE_BYTES, SIGNATURES_FOLDER

logger = logging.getLogger(__name__)

MAX_SIGNATURES = 32  # of one artifact: keys that were ever used for it


class Cache:
    """Verified copies of artifacts, by digest.

    Args:
        verifier: checks signatures; None accepts unsigned artifacts.
    """

    def __init__(self, folder: Path, catalog: Catalog, verifier: Verifier | None) -> None:
        self._folder = folder
        self._catalog = catalog
        self._verifier = verifier

    def ensure(self, ref: ArtifactRef, names: Sequence[str] | None = None) -> Path:
        """The folder with the artifact's files (all, unless named), verified.

        Raises:
            StoreUnavailable: it is not cached, and the bucket is away.
            NotFound, DigestMismatch: the bucket does not hold what the reference promises.
            SignatureRefused: nobody who is trusted signed it, or not as it is.
        """
        folder = self._folder / ref.digest
        problem = _problem(folder, ref, names) or self._distrust(folder)
        if problem is None:
            return folder
        if folder.exists():
            logger.warning("%s: %s; fetching it again", folder, problem)
        return self._fetch(ref, folder, names)

    def keep(self, ref: ArtifactRef, names: Sequence[str] | None = None) -> Path:
        """The same for an artifact whose signature was checked since this process began: each file's sha256 is what that
        was for, so where all are right nobody is asked again; else it is fetched anew.

        Raises:
            StoreUnavailable, NotFound, DigestMismatch, SignatureRefused: as `ensure`.
        """
        folder = self._folder / ref.digest
        return self.ensure(ref, names) if _problem(folder, ref, names) else folder

    def close(self) -> None:
        """End the verifier's process, if there is one."""
        if self._verifier:
            self._verifier.close()

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
            self._fetch_signed(ref, partial)
            self._catalog.fetch(ref, partial, names)
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return folder

    def _fetch_signed(self, ref: ArtifactRef, folder: Path) -> None:
        """The manifest, byte for byte, and its signatures; checked before anything that it names is fetched."""
        store = self._catalog.store
        manifest = store.get(f"{ref.uri}/{MANIFEST_FILE}")
        (folder / MANIFEST_FILE).write_bytes(manifest)
        if self._verifier is None:
            return
        (folder / SIGNATURES_FOLDER).mkdir()
        for info in islice(store.list(f"{ref.uri}/{SIGNATURES_FOLDER}"), MAX_SIGNATURES):
            if info.size <= MAX_BUNDLE_BYTES:
                (folder / SIGNATURES_FOLDER / PurePosixPath(info.uri).name).write_bytes(store.get(info.uri))
        if reason := self._distrust(folder):
            raise SignatureRefused(f"{ref} at {ref.uri} is not loaded: {reason}")
        actual = Manifest.model_validate_json(manifest).digest
        if actual != ref.digest:
            raise DigestMismatch(f"{ref.uri}/{MANIFEST_FILE}", ref.digest, actual)

    def _distrust(self, folder: Path) -> str | None:
        """Why the signatures of a local copy do not do, or None."""
        if self._verifier is None:
            return None
        try:
            self._verifier.check(folder)
        except SignatureRefused as refused:
            return str(refused)
        return None


def _problem(folder: Path, ref: ArtifactRef, names: Sequence[str] | None) -> str | None:
    """Why the cached copy cannot be used, or None."""
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST_FILE).read_bytes())
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
        if path.is_absolute() or ".." in path.parts or name == MANIFEST_FILE or path.parts[0] == SIGNATURES_FOLDER:
            raise DataError(f"the artifact's manifest names a file {name!r}, which no artifact may hold")
