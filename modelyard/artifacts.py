"""What crosses a stage: references, manifests, digests and keys.

Nothing here touches a store (`modelyard.catalog` does), so every rule about identity can be read and
tested as plain values. Two identities are kept apart:

* the **key** says which work an artifact is the answer to (stage, config, inputs, code): it is known
  before the work starts, and it is where the artifact lives;
* the **digest** says what came out. It covers `ManifestContent` alone, so it does not depend on when,
  where or by which attempt the work was done.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

SCHEMA_VERSION = 1

ArtifactKind = Literal[
    "snapshot", "partition", "dataset", "pretrained", "model", "trial", "candidate", "compressed", "verdict"
]


class Frozen(BaseModel):
    """A value: frozen, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ArtifactRef(Frozen):
    """A small, JSON-serialisable pointer to a committed artifact: the only thing stages exchange.

    Attributes:
        uri: folder of the artifact, ``s3://bucket/artifacts/<kind>/<key>``.
        digest: sha256 (hex) of the artifact's canonical content.
        kind: which stage's output it is.
    """

    uri: str
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    kind: ArtifactKind

    def __str__(self) -> str:
        return f"{self.kind}@{self.digest[:12]}"


def _stays_inside(name: str) -> str:
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\\" in name:
        raise ValueError(f"{name!r} is not a file name below the artifact's folder")
    return name


# A manifest comes from a bucket that others may write to: its names must not lead out of the folder they are read into.
FileName = Annotated[str, AfterValidator(_stays_inside)]


class FileEntry(Frozen):
    """Size in bytes and sha256 (hex) of one file of an artifact."""

    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class ManifestContent(Frozen):
    """The part of a manifest that its digest covers: what the artifact *is*."""

    kind: ArtifactKind
    schema_version: int = SCHEMA_VERSION
    files: dict[FileName, FileEntry]
    config: dict[str, Any]
    inputs: dict[str, str] = Field(default_factory=dict, description="role -> digest")
    code_version: str
    facts: dict[str, Any] = Field(
        default_factory=dict, description="small results that follow from the files (row counts, metrics)"
    )


class Provenance(Frozen):
    """How, when and by whom an artifact came to be: kept, but outside the digest."""

    attempt_id: str = Field(pattern=r"^[\w-]+$")
    created_at: str
    machine: str
    commit: str | None = None
    input_uris: dict[str, str] = Field(default_factory=dict)
    elsewhere: dict[FileName, str] = Field(
        default_factory=dict, description="files that lie in the folder of an input: name -> URI"
    )
    flow_run_id: str | None = None
    mlflow_run_id: str | None = None
    seconds: float | None = None
    measurements: dict[str, Any] = Field(
        default_factory=dict, description="what depends on the machine, such as latency"
    )

    @model_validator(mode="after")
    def _files_lie_in_inputs(self) -> Provenance:
        folders = set(self.input_uris.values())
        for name, uri in self.elsewhere.items():
            folder, attempts, path = uri.partition("/attempts/")
            if folder not in folders or not attempts or ".." in PurePosixPath(path).parts:
                raise ValueError(f"{name!r} lies at {uri}, which is in the folder of no input")
        return self


class Manifest(Frozen):
    """The commit record of an artifact: a folder without one holds nothing."""

    content: ManifestContent
    provenance: Provenance

    @property
    def digest(self) -> str:
        return digest_of(self.content.model_dump(mode="json"))

    def file_path(self, name: str) -> str:
        """Path of a logical file below the artifact's folder."""
        return f"attempts/{self.provenance.attempt_id}/{name}"

    def file_uri(self, folder: str, name: str) -> str:
        """Where a logical file of the artifact in ``folder`` lies: there, or with the input that it was taken from."""
        return self.provenance.elsewhere.get(name) or f"{folder}/{self.file_path(name)}"


def canonical_json(value: Any) -> bytes:
    """One byte string for one value: sorted keys, no spaces, UTF-8, no NaN (RFC 8785 in spirit)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest_of(value: Any) -> str:
    """sha256 (hex) of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def artifact_key(kind: ArtifactKind, config: Mapping[str, Any], inputs: Mapping[str, str], code_version: str) -> str:
    """Name of the work itself: same stage, config, input digests and code give the same key."""
    identity = {
        "kind": kind,
        "schema_version": SCHEMA_VERSION,
        "config": dict(config),
        "inputs": dict(inputs),
        "code_version": code_version,
    }
    return digest_of(identity)[:40]


def new_attempt_id() -> str:
    """A fresh name for one attempt at publishing an artifact."""
    return secrets.token_hex(8)
