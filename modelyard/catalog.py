"""How artifacts get into the store and out of it.

    artifacts/<kind>/<key>/manifest.json              the commit point: put once, create-only
    artifacts/<kind>/<key>/attempts/<attempt>/<file>  what the winning attempt wrote (and, for a while, losers)
    digests/<digest>                                  the way back from a digest to its artifact

Nothing without a manifest exists; no byte is used before its sha256 was compared with the manifest.
"""

from __future__ import annotations

import hashlib
import json
import platform
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from modelyard.artifacts import (
    ArtifactKind,
    ArtifactRef,
    FileEntry,
    Manifest,
    ManifestContent,
    Provenance,
    artifact_key,
    new_attempt_id,
)
from modelyard.errors import DigestMismatch, NotFound, TransientError
from modelyard.storage import Store

HASH_CHUNK_BYTES = 2**20
PARALLEL_FILES = 8


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Who asks for a piece of work: goes into the provenance, never into a key or digest."""

    flow_run_id: str | None = None
    mlflow_run_id: str | None = None
    commit: str | None = None


@dataclass(frozen=True, kw_only=True)
class Work:
    """A piece of work, named by everything its result depends on.

    Attributes:
        kind: what it makes.
        config: the JSON form of its config.
        inputs: role -> artifact it reads.
        code_version: from `modelyard.code_version`.
        occasion: what else names the work though the result does not consist of it, such as the listing that a
            snapshot is taken of: part of the key, not of the digest.
    """

    kind: ArtifactKind
    config: Mapping[str, Any]
    inputs: Mapping[str, ArtifactRef]
    code_version: str
    occasion: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        digests = {role: ref.digest for role, ref in self.inputs.items()}
        config = {"config": dict(self.config), "occasion": dict(self.occasion)} if self.occasion else self.config
        return artifact_key(self.kind, config, digests, self.code_version)


@dataclass(frozen=True, kw_only=True)
class Product:
    """A committed artifact, with its manifest, and whether this call found it rather than made it."""

    ref: ArtifactRef
    manifest: Manifest
    reused: bool


@dataclass
class Attempt:
    """One try at making an artifact. Files go to the store as they are added.

    ``facts`` fills up for the digest's part of the manifest; ``measurements`` and ``input_uris`` (where something
    that is not named as an input of the work was read from) for the provenance.
    """

    store: Store
    uri: str
    scratch: Path
    attempt_id: str = field(default_factory=new_attempt_id)
    files: dict[str, FileEntry] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    measurements: dict[str, Any] = field(default_factory=dict)
    input_uris: dict[str, str] = field(default_factory=dict)
    elsewhere: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, path: Path) -> None:
        """Upload a local file under a logical name."""
        self.files[name] = FileEntry(size=path.stat().st_size, sha256=file_sha256(path))
        self.store.upload(path, self._uri_of(name))

    def add_bytes(self, name: str, body: bytes) -> None:
        self.files[name] = FileEntry(size=len(body), sha256=hashlib.sha256(body).hexdigest())
        self.store.put(self._uri_of(name), body)

    def add_json(self, name: str, value: Any) -> None:
        self.add_bytes(name, json.dumps(value, sort_keys=True, indent=1, allow_nan=False).encode())

    def adopt(self, name: str, entry: FileEntry, uri: str) -> None:
        """Make a file of another artifact one of this, where it lies; `input_uris` has to name that artifact."""
        self.files[name], self.elsewhere[name] = entry, uri

    def discard(self) -> None:
        """Delete what this attempt wrote."""
        self.store.delete([self._uri_of(name) for name in self.files if name not in self.elsewhere])

    def _uri_of(self, name: str) -> str:
        return f"{self.uri}/attempts/{self.attempt_id}/{name}"


class Catalog:
    """The artifacts of one store."""

    def __init__(self, store: Store) -> None:
        self.store = store

    # -- finding --------------------------------------------------------------------------------------

    def folder(self, kind: ArtifactKind, key: str) -> str:
        return f"{self.store.root}/artifacts/{kind}/{key}"

    def find(self, kind: ArtifactKind, key: str) -> Product | None:
        """The committed artifact of a piece of work, or None where nobody finished it."""
        uri = self.folder(kind, key)
        try:
            manifest = self._manifest_at(uri)
        except NotFound:
            return None
        ref = ArtifactRef(uri=uri, digest=manifest.digest, kind=kind)
        return Product(ref=ref, manifest=manifest, reused=True)

    def resolve(self, name: str) -> ArtifactRef:
        """An artifact by its digest or its URI.

        Raises:
            NotFound: no committed artifact answers to that name.
        """
        uri = name if name.startswith("s3://") else self._uri_of_digest(name)
        manifest = self._manifest_at(uri.rstrip("/"))
        return ArtifactRef(uri=uri.rstrip("/"), digest=manifest.digest, kind=manifest.content.kind)

    def manifest(self, ref: ArtifactRef) -> Manifest:
        """The manifest behind a reference, checked against the reference's digest.

        Raises:
            NotFound: nothing is committed there.
            DigestMismatch: something else is.
        """
        manifest = self._manifest_at(ref.uri)
        if manifest.digest != ref.digest:
            raise DigestMismatch(f"{ref.uri}/manifest.json", ref.digest, manifest.digest)
        return manifest

    # -- reading --------------------------------------------------------------------------------------

    def read(self, ref: ArtifactRef, name: str, manifest: Manifest | None = None) -> bytes:
        """One small file, verified; whoever has the manifest at hand may give it."""
        manifest = manifest or self.manifest(ref)
        entry, uri = _entry(manifest, ref, name)
        body = self.store.get(uri)
        _check(uri, entry, hashlib.sha256(body).hexdigest())
        return body

    def fetch(
        self,
        ref: ArtifactRef,
        folder: Path,
        names: Sequence[str] | None = None,
        manifest: Manifest | None = None,
    ) -> Manifest:
        """Download files (all, unless named) into a local folder, each verified, several at a time."""
        manifest = manifest or self.manifest(ref)
        wanted = list(manifest.content.files) if names is None else names
        with ThreadPoolExecutor(PARALLEL_FILES) as pool:
            list(pool.map(lambda name: self._fetch_one(manifest, ref, name, folder / name), wanted))
        return manifest

    def _fetch_one(self, manifest: Manifest, ref: ArtifactRef, name: str, path: Path) -> None:
        entry, uri = _entry(manifest, ref, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.store.download(uri, path)
        try:
            _check(uri, entry, file_sha256(path))
        except DigestMismatch:
            path.unlink()
            raise

    # -- making ---------------------------------------------------------------------------------------

    def produce(self, work: Work, build: Callable[[Attempt], None], origin: Origin) -> Product:
        """The artifact of a piece of work: found if anybody committed it before, else built and committed.

        ``build`` adds files and facts to the attempt it is given. If it raises, nothing becomes visible and its
        files are deleted; if the process dies instead, the sweeper deletes them later. Two racing callers both
        return the one that committed first.
        """
        found = self.find(work.kind, work.key)
        if found:
            self.index(found.ref)
            return found
        with self._attempt(work) as attempt:
            started = time.monotonic()
            build(attempt)
            seconds = time.monotonic() - started
        # Outside: from the put on the manifest may stand though the call failed, so no failure may delete its files.
        return self._commit(work, attempt, origin, seconds)

    def index(self, ref: ArtifactRef) -> None:
        """Make the digest findable; repeated whenever the artifact is found, so a crash in between heals."""
        self.store.put_new(f"{self.store.root}/digests/{ref.digest}", ref.uri.encode())

    @contextmanager
    def _attempt(self, work: Work) -> Generator[Attempt]:
        with tempfile.TemporaryDirectory(prefix=f"modelyard-{work.kind}-") as scratch:
            attempt = Attempt(self.store, self.folder(work.kind, work.key), Path(scratch))
            try:
                yield attempt
            except BaseException:
                with suppress(TransientError):  # the sweeper comes by later; why the build failed matters more
                    attempt.discard()
                raise

    def _commit(self, work: Work, attempt: Attempt, origin: Origin, seconds: float) -> Product:
        content = ManifestContent(
            kind=work.kind,
            files=dict(sorted(attempt.files.items())),
            config=dict(work.config),
            inputs={role: ref.digest for role, ref in work.inputs.items()},
            code_version=work.code_version,
            facts=attempt.facts,
        )
        provenance = Provenance(
            attempt_id=attempt.attempt_id,
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            machine=platform.node(),
            commit=origin.commit,
            input_uris={role: ref.uri for role, ref in work.inputs.items()} | attempt.input_uris,
            elsewhere=attempt.elsewhere,
            flow_run_id=origin.flow_run_id,
            mlflow_run_id=origin.mlflow_run_id,
            seconds=round(seconds, 3),
            measurements=attempt.measurements,
        )
        mine = Manifest(content=content, provenance=provenance)
        created = self.store.put_new(f"{attempt.uri}/manifest.json", mine.model_dump_json(indent=1).encode())
        # A retried put whose first reply was lost also reports "exists": whose attempt it names decides.
        standing = mine if created else self._manifest_at(attempt.uri)
        won = standing.provenance.attempt_id == attempt.attempt_id
        if not won:
            attempt.discard()
        ref = ArtifactRef(uri=attempt.uri, digest=standing.digest, kind=work.kind)
        self.index(ref)
        return Product(ref=ref, manifest=standing, reused=not won)

    # -- details --------------------------------------------------------------------------------------

    def _uri_of_digest(self, digest: str) -> str:
        """The URI behind a digest or an unambiguous start of one."""
        found = [info.uri for info in self.store.list(f"{self.store.root}/digests") if digest in info.uri]
        matching = [uri for uri in found if uri.rpartition("/")[2].startswith(digest)]
        if len(matching) != 1:
            problem = "matches no artifact" if not matching else f"matches {len(matching)} artifacts"
            raise NotFound(f"digest {digest!r} {problem} in {self.store.root}")
        return self.store.get(matching[0]).decode()

    def _manifest_at(self, uri: str) -> Manifest:
        body = self.store.get(f"{uri}/manifest.json")
        try:
            return Manifest.model_validate_json(body)
        except ValidationError as invalid:
            actual = hashlib.sha256(body).hexdigest()
            raise DigestMismatch(f"{uri}/manifest.json", "a readable manifest", actual) from invalid


def file_sha256(path: Path) -> str:
    """sha256 (hex) of a file, read in chunks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _entry(manifest: Manifest, ref: ArtifactRef, name: str) -> tuple[FileEntry, str]:
    entry = manifest.content.files.get(name)
    if entry is None:
        raise NotFound(f"{ref}: has no file {name!r}; it holds {', '.join(manifest.content.files)}")
    return entry, manifest.file_uri(ref.uri, name)


def _check(uri: str, entry: FileEntry, actual: str) -> None:
    if actual != entry.sha256:
        raise DigestMismatch(uri, entry.sha256, actual)
