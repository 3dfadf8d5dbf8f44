"""Bytes to and from an S3 bucket: the only file that imports obstore, s3fs or boto3.

Three clients, each where it is best (measured, see `benchmarks/storage.py`): obstore moves bytes, s3fs is
handed to libraries whose contract is fsspec, boto3 does what is done once (buckets, stale uploads). The last two
are imported where they are used: 0.5 s and 30 MB that a command line, a rank and the endpoint do without.
`Store.put_new` is the one conditional primitive that every commit in Modelyard rests on.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import uuid4

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    GenericError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import S3Store

from modelyard.errors import NotFound, ObjectChanged, StoreRefused, StoreUnavailable
from modelyard.settings import Settings

if TYPE_CHECKING:
    from obstore import GetOptions
    from obstore.store import ClientConfig, S3Config
    from s3fs import S3FileSystem

# Ranges of this size keep a 1 GB transfer within 0.9 of what the network gives, with a few of them in memory.
PART_BYTES = 16 * 2**20
REFUSALS = ("SignatureDoesNotMatch", "InvalidAccessKeyId", "AccessDenied", "403 Forbidden", "401 Unauthorized")
PARALLEL_PARTS = 8
# Stores that ignore If-None-Match and have a header of their own for "fail if it exists".
CREATE_ONLY_HEADERS = {
    "oss": {"x-oss-forbid-overwrite": "true"},
    "cos": {"x-cos-forbid-overwrite": "true"},
}


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


@dataclass(frozen=True, kw_only=True)
class StaleUpload:
    """A multipart upload that somebody began and nobody finished."""

    uri: str
    upload_id: str
    started: datetime


def split_uri(uri: str) -> tuple[str, str]:
    """``s3://bucket/a/b`` -> ``("bucket", "a/b")``.

    Raises:
        StoreRefused: the URI is not of that form.
    """
    parts = urlsplit(uri, allow_fragments=False)
    if parts.scheme != "s3" or not parts.netloc:
        raise StoreRefused(f"{uri!r} is not an object storage URI; write s3://<bucket>/<key>")
    return parts.netloc, uri.removeprefix(f"s3://{parts.netloc}").lstrip("/")


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

    @property
    def root(self) -> str:
        """URI of the installation's own bucket, without a trailing slash."""
        return f"s3://{self._settings.bucket}"

    # -- single objects -------------------------------------------------------------------------------

    def get(self, uri: str) -> bytes:
        bucket, key = split_uri(uri)
        with _translated(uri):
            body = obstore.get(self._client(bucket), key).bytes().to_bytes()
        self.traffic.bytes_in += len(body)
        return body

    def get_stream(self, uri: str, etag: str | None = None) -> Iterator[bytes]:
        """The object in chunks of about 10 MB; with an ETag, that version of it or `ObjectChanged`."""
        bucket, key = split_uri(uri)
        options: GetOptions = {"if_match": etag} if etag else {}
        with _translated(uri):
            for chunk in obstore.get(self._client(bucket), key, options=options).stream():
                self.traffic.bytes_in += len(chunk)
                yield bytes(chunk)

    def put(self, uri: str, body: bytes) -> None:
        """Write or overwrite; atomic for readers."""
        bucket, key = split_uri(uri)
        with _translated(uri):
            obstore.put(self._client(bucket), key, body, **_part_options(len(body)))
        self.traffic.bytes_out += len(body)

    def put_new(self, uri: str, body: bytes) -> bool:
        """Create, never overwrite: True if this call created the object, False if it was there already.

        A lost reply looks like "there already" on the retry, so a caller that must know whether it won
        writes something of its own into the body and reads it back.
        """
        bucket, key = split_uri(uri)
        native = self._settings.s3_create_only == "if-none-match"
        with _translated(uri):
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
        with _translated(uri):
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
        with _translated(uri):
            obstore.put(self._client(bucket), key, path, attributes=dict(attributes or {}), **_part_options(size))
        self.traffic.bytes_out += size

    def attributes(self, uri: str) -> Mapping[str, str]:
        """What was given to `upload`, without reading the object."""
        bucket, key = split_uri(uri)
        with _translated(uri):
            found = obstore.get(self._client(bucket), key, options={"head": True}).attributes
        return {str(name).lower(): str(value) for name, value in found.items()}

    def download(self, uri: str, path: Path) -> None:
        """One object to a local file, in parallel ranges when it is large; the file appears whole or not at all."""
        bucket, key = split_uri(uri)
        client = self._client(bucket)
        partial = path.with_name(f"{path.name}.{uuid4().hex}.partial")
        try:
            with _translated(uri), partial.open("wb") as file:
                first, meta = _first_part(client, key)
                file.write(first)
                _fetch_rest(client, key, meta, file)
            self.traffic.bytes_in += partial.stat().st_size
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    # -- many objects ---------------------------------------------------------------------------------

    def list(self, prefix_uri: str) -> Iterator[ObjectInfo]:
        """Every object whose URI starts with the folder ``prefix_uri``, in key order."""
        bucket, prefix = split_uri(prefix_uri)
        with _translated(prefix_uri):
            for chunk in obstore.list(self._client(bucket), prefix or None):
                for meta in chunk:
                    yield _object_info(bucket, dict(meta))

    def last(self, prefix_uri: str, after: str = "") -> ObjectInfo | None:
        """The object of a folder that sorts last, looking only behind the key named ``after``."""
        bucket, prefix = split_uri(prefix_uri)
        found: dict[str, Any] | None = None
        offset = f"{prefix.rstrip('/')}/{after}" if after else None
        with _translated(prefix_uri):
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
            with _translated(f"s3://{bucket}"):
                _delete_keys(self._client(bucket), keys)
        return sum(map(len, by_bucket.values()))

    # -- for libraries --------------------------------------------------------------------------------

    def filesystem(self) -> S3FileSystem:
        """An fsspec file system: never cached across processes, never with a stale listing."""
        from s3fs import S3FileSystem

        return S3FileSystem(**self.filesystem_options(), skip_instance_cache=True)

    def filesystem_options(self, *, with_credentials: bool = True) -> dict[str, Any]:
        """Arguments for s3fs. Without credentials they may be stored: botocore then finds its own."""
        settings = self._settings
        client: dict[str, Any] = {"region_name": settings.s3_region}
        if settings.s3_ca_bundle:
            client["verify"] = str(settings.s3_ca_bundle)
        options: dict[str, Any] = {
            "endpoint_url": settings.store_url,
            "client_kwargs": client,
            "config_kwargs": _botocore_options(settings),
            "use_listings_cache": False,
        }
        if settings.s3_encryption:
            options["s3_additional_kwargs"] = _encryption_arguments(settings)
        if with_credentials and settings.s3_access_key and settings.s3_secret_key:
            options |= {
                "key": settings.s3_access_key,
                "secret": settings.s3_secret_key.get_secret_value(),
            }
        return options

    # -- control plane --------------------------------------------------------------------------------

    def create_bucket(self) -> None:
        """Create the installation's bucket unless it exists."""
        from botocore.exceptions import ClientError

        with _control_translated(self.root):
            try:
                self._control().create_bucket(Bucket=self._settings.bucket)
            except ClientError as failure:
                if failure.response["Error"]["Code"] not in {
                    "BucketAlreadyOwnedByYou",
                    "BucketAlreadyExists",
                }:
                    raise

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

    def stale_uploads(self, older_than: timedelta) -> Sequence[StaleUpload]:
        """Multipart uploads of the installation's bucket begun longer ago than ``older_than``."""
        bucket, limit, found = self._settings.bucket, datetime.now(UTC) - older_than, []
        with _control_translated(self.root):
            for page in self._control().get_paginator("list_multipart_uploads").paginate(Bucket=bucket):
                for upload in page.get("Uploads", []):
                    if upload["Initiated"] < limit:
                        uri = f"s3://{bucket}/{upload['Key']}"
                        found.append(StaleUpload(uri=uri, upload_id=upload["UploadId"], started=upload["Initiated"]))
        return found

    def abort_upload(self, upload: StaleUpload) -> None:
        bucket, key = split_uri(upload.uri)
        with _control_translated(upload.uri):
            self._control().abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload.upload_id)

    # -- clients --------------------------------------------------------------------------------------

    def _client(self, bucket: str, *, create_only: bool = False) -> S3Store:
        known = self._buckets.get((bucket, create_only))
        if known is None:
            known = self._buckets[bucket, create_only] = self._connect(bucket, create_only)
        return known

    def _connect(self, bucket: str, create_only: bool) -> S3Store:
        settings = self._settings
        bound = timedelta(seconds=settings.s3_timeout_seconds)
        client: ClientConfig = {
            "allow_http": settings.store_url.startswith("http://"),
            "connect_timeout": timedelta(seconds=5),
            "read_timeout": bound,
            # The whole of one request; a part is 16 MB, so this admits a link of 0.5 MB/s at the default.
            "timeout": bound,
        }
        if create_only:
            client["default_headers"] = CREATE_ONLY_HEADERS[settings.s3_create_only]
        if settings.s3_ca_bundle:
            client["root_certificate"] = settings.s3_ca_bundle.read_bytes()
        config: S3Config = {
            "endpoint": settings.store_url,
            "region": settings.s3_region,
            "virtual_hosted_style_request": settings.s3_addressing == "virtual",
        }
        if settings.s3_encryption:
            config["server_side_encryption"] = settings.s3_encryption
        if settings.s3_kms_key_id:
            config["sse_kms_key_id"] = settings.s3_kms_key_id
        if settings.s3_access_key and settings.s3_secret_key:
            config["access_key_id"] = settings.s3_access_key
            config["secret_access_key"] = settings.s3_secret_key.get_secret_value()
        return S3Store(
            bucket,
            config=config,
            client_options=client,
            retry_config={"max_retries": 4, "retry_timeout": 2 * bound},
        )

    def _control(self) -> Any:
        import boto3
        from botocore.config import Config

        settings = self._settings
        secret = settings.s3_secret_key
        return boto3.client(
            "s3",
            endpoint_url=settings.store_url,
            region_name=settings.s3_region,
            aws_access_key_id=settings.s3_access_key,
            aws_secret_access_key=secret.get_secret_value() if secret else None,
            verify=str(settings.s3_ca_bundle) if settings.s3_ca_bundle else None,
            config=Config(**_botocore_options(settings)),
        )


def _botocore_options(settings: Settings) -> dict[str, Any]:
    return {
        "s3": {"addressing_style": settings.s3_addressing},
        # Newer botocore adds checksums that many S3-compatible stores refuse.
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
        "connect_timeout": 5,
        "read_timeout": settings.s3_timeout_seconds,
        "retries": {"max_attempts": 4, "mode": "standard"},
    }


def _encryption_arguments(settings: Settings) -> dict[str, str]:
    arguments = {"ServerSideEncryption": str(settings.s3_encryption)}
    if settings.s3_kms_key_id:
        arguments["SSEKMSKeyId"] = settings.s3_kms_key_id
    return arguments


def _part_options(size: int) -> dict[str, Any]:
    if size <= PART_BYTES:
        return {"use_multipart": False}
    return {"use_multipart": True, "chunk_size": PART_BYTES, "max_concurrency": PARALLEL_PARTS}


def _first_part(client: S3Store, key: str) -> tuple[bytes | obstore.Bytes, Any]:
    """The object's first bytes and its metadata, in one request unless it is empty: then no range is satisfiable."""
    try:
        first = obstore.get(client, key, options={"range": (0, PART_BYTES)})
        return first.bytes(), first.meta
    except GenericError:
        meta = obstore.head(client, key)
        if meta["size"]:
            raise
        return b"", meta


def _fetch_rest(client: S3Store, key: str, meta: Any, file: IO[bytes]) -> None:
    """Everything behind the first part: some ranges always under way, each written where it belongs as it arrives."""
    same_version = {"if_match": meta["e_tag"]} if meta.get("e_tag") else {}

    def fetch(start: int) -> None:
        ranged = {"range": (start, min(start + PART_BYTES, meta["size"]))}
        _write_at(file.fileno(), obstore.get(client, key, options={**ranged, **same_version}).bytes(), start)

    starts = range(PART_BYTES, meta["size"], PART_BYTES)
    if not starts:
        return
    with ThreadPoolExecutor(min(PARALLEL_PARTS, len(starts))) as pool:
        parts = [pool.submit(fetch, start) for start in starts]
        try:
            for part in parts:
                part.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # the other ranges are of no use any more
            raise


def _write_at(descriptor: int, data: bytes | obstore.Bytes, position: int) -> None:
    """All of it; the kernel may take less in one go."""
    rest = memoryview(data)
    while rest:
        written = os.pwrite(descriptor, rest, position)
        rest, position = rest[written:], position + written


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


@contextmanager
def _translated(uri: str) -> Generator[None]:
    """Turn obstore's exceptions into ours, with the URI in the sentence."""
    try:
        yield
    except FileNotFoundError as failure:
        if "NoSuchBucket" in str(failure):
            raise StoreRefused(f"{uri}: the bucket does not exist") from failure
        raise NotFound(f"{uri}: no such object") from failure
    except PreconditionError as failure:
        raise ObjectChanged(f"{uri}: replaced while it was read; try again") from failure
    except (PermissionDeniedError, UnauthenticatedError, PermissionError) as failure:
        raise StoreRefused(f"{uri}: the store refused the credentials ({_first_line(failure)})") from failure
    except (BaseError, OSError) as failure:
        # A listing that is refused arrives as a generic error with the answer in its text.
        if any(word in str(failure) for word in REFUSALS):
            raise StoreRefused(f"{uri}: the store refused the credentials") from failure
        raise StoreUnavailable(f"{uri}: {_first_line(failure)}") from failure


@contextmanager
def _control_translated(uri: str) -> Generator[None]:
    """The same for boto3's."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, OSError) as failure:
        raise StoreUnavailable(f"{uri}: {_first_line(failure)}") from failure
    except ClientError as failure:
        status = failure.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if status in (401, 403):
            raise StoreRefused(f"{uri}: the store refused the credentials ({_first_line(failure)})") from failure
        kind = StoreRefused if 400 <= status < 500 and status not in (408, 429) else StoreUnavailable
        raise kind(f"{uri}: {_first_line(failure)}") from failure


def _first_line(failure: BaseException) -> str:
    return (str(failure).strip().splitlines() or [type(failure).__name__])[0]
