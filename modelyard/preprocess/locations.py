"""Where a data set lies: in a bucket (`s3://`) or in a folder of this machine (`file://`), by folder, pattern or name."""

from __future__ import annotations

import glob
import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from modelyard.errors import DataError
from modelyard.preprocess.formats import is_data
from modelyard.storage import ObjectInfo, Store

LOCAL = "file://"
WILDCARDS = "*?["
CHUNK_BYTES = 2**20


def local_path(uri: str) -> Path | None:
    """The path behind a `file://` URI, taken as it is written; None for any other.

    Raises:
        DataError: the path is relative, and so would mean another folder in every process.
    """
    if not uri.startswith(LOCAL):
        return None
    path = Path(uri.removeprefix(LOCAL))
    if not path.is_absolute():
        raise DataError(f"{uri}: the path of a file:// URI has to be absolute, file:///like/this")
    return path


def find(store: Store, uri: str) -> Sequence[ObjectInfo]:
    """The objects behind a folder, a pattern or a single name, sorted by URI; empty ones that a pattern names too."""
    path = local_path(uri)
    if path is None:
        return sorted(_in_bucket(store, uri), key=lambda info: info.uri)
    with may_be_read(uri):
        if any(sign in str(path) for sign in WILDCARDS):
            found = [Path(name) for name in glob.glob(str(path), recursive=True)]  # noqa: PTH207 (the pattern is absolute)
        else:
            found = [path] if path.is_file() else list(_walk(path))
        return sorted((_info(file) for file in found if file.is_file()), key=lambda info: info.uri)


@contextmanager
def may_be_read(uri: str) -> Generator[None]:
    """Turn a refusal of the system into a sentence.

    Raises:
        DataError: names what may not be read.
    """
    try:
        yield
    except PermissionError as refusal:
        where = f"{LOCAL}{refusal.filename}" if refusal.filename else uri
        raise DataError(
            f"{where}: may not be read by the user that this runs as; give it the right to, or take it from the data set"
        ) from refusal


def _walk(folder: Path) -> Iterator[Path]:
    """Every file below; a folder that may not be looked into is an error, where `Path.rglob` would leave it out."""

    def refuse(failure: OSError) -> None:
        if isinstance(failure, PermissionError):
            raise failure

    for parent, _, names in os.walk(folder, onerror=refuse):
        yield from (Path(parent, name) for name in names)


def folder_of(uri: str, objects: Sequence[ObjectInfo]) -> str:
    """The part of a URI before any wildcard or, for one object, before its name."""
    signs = [uri.index(sign) for sign in WILDCARDS if sign in uri]
    if signs:
        uri = uri[: min(signs)].rpartition("/")[0]
    elif any(info.uri == uri for info in objects):
        uri = uri.rpartition("/")[0]
    return uri.rstrip("/")


def stream(store: Store, info: ObjectInfo) -> Iterator[bytes]:
    """The object's bytes as they were listed.

    Raises:
        DataError: a local file is gone, or may not be read.
        ObjectChanged: another object stands there now.
    """
    path = local_path(info.uri)
    if path is None:
        yield from store.get_stream(info.uri, etag=info.etag)
        return
    if not path.is_file():
        raise DataError(f"{info.uri}: gone while the data set was listed; put it back")
    with may_be_read(info.uri), path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _in_bucket(store: Store, uri: str) -> Sequence[ObjectInfo]:
    """As the store finds them, but with empty objects that are called like data: whoever put them there lost rows."""
    if any(sign in uri for sign in WILDCARDS) or store.exists(uri):
        return store.glob(uri)
    return [info for info in store.list(uri) if info.size or is_data(info.uri)]


def _info(path: Path) -> ObjectInfo:
    stat = path.stat()
    return ObjectInfo(
        uri=f"{LOCAL}{path.absolute()}",
        size=stat.st_size,
        etag=f"{stat.st_mtime_ns:x}-{stat.st_size:x}",
        modified=datetime.fromtimestamp(stat.st_mtime, UTC),
    )
