"""Objects of an S3 store, addressed by URI."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import obstore
from obstore.exceptions import AlreadyExistsError, PreconditionError
from obstore.store import S3Store

from modelyard.errors import NotFound, StoreRefused
from modelyard.settings import Settings
from modelyard.storage import transfer
from modelyard.storage.clients import connect, filesystem_options
from modelyard.storage.control import ControlPlane
from modelyard.storage.failures import Translated
from modelyard.storage.uris import split_uri

if TYPE_CHECKING:
    from obstore import GetOptions
    from s3fs import S3FileSystem


@dataclass(frozen=True, kw_only=True)
class ObjectInfo:
    """One object of a listing: URI, size in bytes, ETag, time of last change."""

    uri: str
    size: int
    etag: str | None
    modified: datetime


@dataclass
class Traffic:
    """Payload bytes that one `Store` has moved; approximate where threads add at the same time."""

    bytes_in: int = 0
    bytes_out: int = 0


class Store:
    """An S3 store, addressed by full URIs.

    Every method raises `StoreUnavailable` for what may pass (time-outs, 5xx, throttling), `StoreRefused`
    for what will not (credentials, buckets), `NotFound` for a missing object and `ObjectChanged` for one that was
    replaced while it was read.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._buckets: dict[tuple[str, bool], S3Store] = {}
        self.traffic = Traffic()
        self.control = ControlPlane(settings)

    @property
    def settings(self) -> Settings:
        """Of this installation."""
        return self._settings

    @property
    def root(self) -> str:
        """URI of the installation's own bucket, without a trailing slash."""
        return f"s3://{self._settings.bucket}"

    # -- single objects -------------------------------------------------------------------------------

    def get(self, uri: str) -> bytes:
        bucket, key = split_uri(uri)
        with Translated(uri):
            body = obstore.get(self._client(bucket), key).bytes().to_bytes()
        self.traffic.bytes_in += len(body)
        return body

    def get_stream(self, uri: str, etag: str | None = None) -> Iterator[bytes]:
        """The object in chunks of about 10 MB; with an ETag, that version of it or `ObjectChanged`."""
        bucket, key = split_uri(uri)
        options: GetOptions = {"if_match": etag} if etag else {}
        with Translated(uri):
            for chunk in obstore.get(self._client(bucket), key, options=options).stream():
                self.traffic.bytes_in += len(chunk)
                yield bytes(chunk)

    def put(self, uri: str, body: bytes) -> None:
        """Write or overwrite; atomic for readers."""
        bucket, key = split_uri(uri)
        with Translated(uri):
            obstore.put(self._client(bucket), key, body, **transfer.part_options(len(body)))
        self.traffic.bytes_out += len(body)

    def put_new(self, uri: str, body: bytes) -> bool:
        """Create, never overwrite: True if this call created the object, False if it was there already.

        A lost reply looks like "there already" on the retry, so a caller that must know whether it won
        writes something of its own into the body and reads it back.
        """
        bucket, key = split_uri(uri)
        native = self._settings.s3_create_only == "if-none-match"
        with Translated(uri):
            try:
                obstore.put(
                    self._client(bucket, create_only=not native),
                    key,
                    body,
                    mode="create" if native else "overwrite",
                    use_multipart=False,
                )
            except (AlreadyExistsError, PreconditionError):
                return False
        self.traffic.bytes_out += len(body)
        return True

    def head(self, uri: str) -> ObjectInfo:
        bucket, key = split_uri(uri)
        with Translated(uri):
            return _object_info(bucket, dict(obstore.head(self._client(bucket), key)))

    def exists(self, uri: str) -> bool:
        try:
            self.head(uri)
        except NotFound:
            return False
        return True

    # -- files ----------------------------------------------------------------------------------------

    def upload(self, path: Path, uri: str, attributes: Mapping[str, str] | None = None) -> None:
        """A local file to one object, in parallel parts when it is large; ``attributes`` are kept with the object."""
        bucket, key = split_uri(uri)
        size = path.stat().st_size
        with Translated(uri):
            obstore.put(
                self._client(bucket), key, path, attributes=dict(attributes or {}), **transfer.part_options(size)
            )
        self.traffic.bytes_out += size

    def upload_resumably(self, path: Path, uri: str, sha256: str, attributes: Mapping[str, str] | None = None) -> None:
        """The same, for a file that may take long: where an earlier try of this machine was killed, its parts count.

        Args:
            sha256: of the file, by which an earlier try is known to be one of the same bytes.
        """
        if path.stat().st_size <= transfer.PART_BYTES:
            self.upload(path, uri, attributes)
            return
        from modelyard.storage.resumable import ResumableUpload  # boto3: 0.5 s and 30 MB

        self.traffic.bytes_out += ResumableUpload(self._settings, path, uri, sha256, attributes or {}).run()

    def attributes(self, uri: str) -> Mapping[str, str]:
        """What was given to `upload`, without reading the object."""
        bucket, key = split_uri(uri)
        with Translated(uri):
            found = obstore.get(self._client(bucket), key, options={"head": True}).attributes
        return {str(name).lower(): str(value) for name, value in found.items()}

    def download(self, uri: str, path: Path) -> None:
        """One object to a local file, in parallel ranges when it is large; the file appears whole or not at all."""
        bucket, key = split_uri(uri)
        with Translated(uri):
            self.traffic.bytes_in += transfer.download(self._client(bucket), key, path)

    # -- many objects ---------------------------------------------------------------------------------

    def list(self, prefix_uri: str) -> Iterator[ObjectInfo]:
        """Every object whose URI starts with the folder ``prefix_uri``, in key order."""
        bucket, prefix = split_uri(prefix_uri)
        with Translated(prefix_uri):
            for chunk in obstore.list(self._client(bucket), prefix or None):
                for meta in chunk:
                    yield _object_info(bucket, dict(meta))

    def last(self, prefix_uri: str, after: str = "") -> ObjectInfo | None:
        """The object of a folder that sorts last, looking only behind the key named ``after``."""
        bucket, prefix = split_uri(prefix_uri)
        found: dict[str, Any] | None = None
        offset = f"{prefix.rstrip('/')}/{after}" if after else None
        with Translated(prefix_uri):
            for chunk in obstore.list(self._client(bucket), prefix or None, offset=offset):
                for meta in chunk:
                    if found is None or meta["path"] > found["path"]:
                        found = dict(meta)
        return _object_info(bucket, found) if found else None

    def glob(self, pattern_uri: str) -> Sequence[ObjectInfo]:
        """Objects matching ``s3://bucket/folder/*.parquet`` (``*`` stays within one folder), sorted by URI."""
        bucket, pattern = split_uri(pattern_uri)
        if not any(sign in pattern for sign in "*?["):
            if pattern and self.exists(pattern_uri):
                return [self.head(pattern_uri)]
            return [info for info in self.list(pattern_uri) if info.size > 0]
        fixed = pattern[: min(pattern.index(sign) for sign in "*?[" if sign in pattern)]
        folder = fixed.rpartition("/")[0]
        found = self.list(f"s3://{bucket}/{folder}" if folder else f"s3://{bucket}")
        matching = [info for info in found if _matches(split_uri(info.uri)[1], pattern)]
        return sorted(matching, key=lambda info: info.uri)

    def delete(self, uris: Iterable[str]) -> int:
        """Delete objects, a thousand a request; missing ones are no error. Returns how many were named."""
        by_bucket: dict[str, list[str]] = {}
        for uri in uris:
            bucket, key = split_uri(uri)
            by_bucket.setdefault(bucket, []).append(key)
        for bucket, keys in by_bucket.items():
            with Translated(f"s3://{bucket}"):
                _delete_keys(self._client(bucket), keys)
        return sum(map(len, by_bucket.values()))

    # -- for libraries --------------------------------------------------------------------------------

    def filesystem(self) -> S3FileSystem:
        """An fsspec file system: never cached across processes, never with a stale listing."""
        from s3fs import S3FileSystem

        return S3FileSystem(**self.filesystem_options(), skip_instance_cache=True)

    def filesystem_options(self, *, with_credentials: bool = True) -> dict[str, Any]:
        """Arguments for s3fs. Without credentials they may be stored: botocore then finds its own."""
        return filesystem_options(self._settings, with_credentials=with_credentials)

    # -- at the start ---------------------------------------------------------------------------------

    def probe(self) -> None:
        """Prove that the store does what every commit relies on: it writes, reads back and refuses a second create.

        Raises:
            StoreRefused: it overwrote an object that it was asked only to create.
        """
        uri = f"{self.root}/probes/{uuid4().hex}"
        try:
            if not self.put_new(uri, b"first") or self.get(uri) != b"first":
                raise StoreRefused(f"{self._settings.store_url}: a fresh object did not read back")
            if self.put_new(uri, b"second") or self.get(uri) != b"first":
                raise StoreRefused(
                    f"{self._settings.store_url}: the store overwrites objects it is asked only to create, so two"
                    " writers could both believe they won; set MODELYARD_S3_CREATE_ONLY to the header it honours"
                )
        finally:
            self.delete([uri])

    # -- clients --------------------------------------------------------------------------------------

    def _client(self, bucket: str, *, create_only: bool = False) -> S3Store:
        known = self._buckets.get((bucket, create_only))
        if known is None:
            known = self._buckets[bucket, create_only] = connect(self._settings, bucket, create_only=create_only)
        return known


def _delete_keys(client: S3Store, keys: Sequence[str]) -> None:
    try:
        obstore.delete(client, list(keys))
    except FileNotFoundError:
        for key in keys:
            _delete_one(client, key)


def _delete_one(client: S3Store, key: str) -> None:
    with suppress(FileNotFoundError):  # somebody else deleted it first: the wish is granted
        obstore.delete(client, key)


def _object_info(bucket: str, meta: dict[str, Any]) -> ObjectInfo:
    return ObjectInfo(
        uri=f"s3://{bucket}/{meta['path']}",
        size=meta["size"],
        etag=meta.get("e_tag"),
        modified=meta["last_modified"],
    )


def _matches(key: str, pattern: str) -> bool:
    """Shell matching folder by folder, so that ``*`` does not cross a slash."""
    parts, wanted = key.split("/"), pattern.split("/")
    return len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted))
