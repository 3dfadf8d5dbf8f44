"""Which bytes a data set is made from: the files behind a URI, by relative name, size and sha256."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pydantic import Field

from modelyard.artifacts import ArtifactRef, Frozen
from modelyard.catalog import Attempt, Catalog, Origin, Product, Work
from modelyard.code_version import code_version
from modelyard.errors import DataError, NotFound
from modelyard.preprocess.formats import FAMILIES, SUFFIXES, format_by_name, is_data
from modelyard.preprocess.locations import find, folder_of, stream
from modelyard.storage import ObjectInfo, Store

SOURCES_FILE = "sources.json"
# Role under which the manifest's provenance keeps the folder that the names are relative to.
ROLE = "sources"
PARALLEL_FILES = 8


class Source(Frozen):
    """One file of the user's: its name relative to the data set's folder, size in bytes, sha256 (hex)."""

    name: str
    size: int = Field(ge=0)
    sha256: str


class Sources(Frozen):
    """Content of `sources.json`: the files in the order in which their rows are read."""

    sources: list[Source]


def snapshot(catalog: Catalog, dataset_uri: str, origin: Origin) -> Product:
    """Take down what a data set consists of at this moment.

    Args:
        catalog: where the snapshot goes.
        dataset_uri: ``s3://bucket/folder``, ``s3://bucket/folder/*.parquet`` or one object; the same with ``file://``.
        origin: who asks.

    Returns:
        A ``snapshot`` artifact. A file that has the size and ETag it had before is not read again; the digest
        follows from names, sizes and bytes alone, so a copy of the files elsewhere gives the same one.

    Raises:
        DataError: no file of a known format is there.
        ObjectChanged: an object was replaced while it was read; the next try lists anew.
    """
    dataset_uri = dataset_uri.rstrip("/")
    objects = _list(catalog.store, dataset_uri)
    folder = folder_of(dataset_uri, objects)
    listing = [[info.uri.removeprefix(f"{folder}/"), info.size, info.etag] for info in objects]

    def build(attempt: Attempt) -> None:
        known = _Listing.of(catalog.store, dataset_uri)
        with ThreadPoolExecutor(PARALLEL_FILES) as pool:
            sources = list(
                pool.map(lambda info: known.find(info, folder) or _hash(catalog.store, info, folder), objects)
            )
        known.keep(objects, sources)
        attempt.input_uris[ROLE] = folder
        attempt.add_json(SOURCES_FILE, Sources(sources=sources).model_dump(mode="json"))
        attempt.facts.update(files=len(sources), bytes=sum(source.size for source in sources))

    work = Work(
        kind="snapshot",
        config={},
        inputs={},
        code_version=code_version("modelyard.preprocess.snapshot", libraries=()),
        occasion={"uri": dataset_uri, "objects": listing},
    )
    return catalog.produce(work, build, origin)


class _Listing:
    """Digests of the files that a URI named last time; whoever reads a file later holds its bytes against them."""

    def __init__(self, store: Store, place: str, files: Mapping[str, list[Any]]) -> None:
        self._store, self._place, self._files = store, place, files

    @classmethod
    def of(cls, store: Store, dataset_uri: str) -> _Listing:
        place = f"{store.root}/history/{hashlib.sha256(dataset_uri.encode()).hexdigest()[:32]}-files.json"
        try:
            return cls(store, place, json.loads(store.get(place)))
        except NotFound:
            return cls(store, place, {})

    def find(self, info: ObjectInfo, folder: str) -> Source | None:
        size, etag, digest = self._files.get(info.uri, (None, None, ""))
        if etag is None or (size, etag) != (info.size, info.etag):
            return None
        return Source(name=info.uri.removeprefix(f"{folder}/"), size=info.size, sha256=digest)

    def keep(self, objects: Sequence[ObjectInfo], sources: Sequence[Source]) -> None:
        files = {info.uri: [info.size, info.etag, source.sha256] for info, source in zip(objects, sources, strict=True)}
        self._store.put(self._place, json.dumps(files).encode())


def read_snapshot(catalog: Catalog, ref: ArtifactRef) -> tuple[str, list[Source]]:
    """The folder a snapshot was taken of, and its files."""
    folder = catalog.manifest(ref).provenance.input_uris[ROLE]
    return folder, Sources.model_validate_json(catalog.read(ref, SOURCES_FILE)).sources


def _list(store: Store, dataset_uri: str) -> list[ObjectInfo]:
    """What counts: in a folder or pattern the files whose names say that they hold data, of one family, a single object
    in any case."""
    found = find(store, dataset_uri)
    alone = len(found) == 1 and found[0].uri == dataset_uri
    usable = [info for info in found if alone or is_data(info.uri)]
    if not alone:
        families = ([info for info in usable if format_by_name(info.uri) in family] for family in FAMILIES)
        usable = next(filter(None, families), [])
    if not usable:
        others = f" ({len(found)} other objects are)" if found else ""
        raise DataError(
            f"{dataset_uri}: no file of a known format is there{others}; known are {', '.join(SUFFIXES)}, also as .gz"
            " or .zst. Check the URI, or upload the data"
        )
    return usable


def _hash(store: Store, info: ObjectInfo, folder: str) -> Source:
    digest, size = hashlib.sha256(), 0
    for chunk in stream(store, info):
        digest.update(chunk)
        size += len(chunk)
    return Source(name=info.uri.removeprefix(f"{folder}/"), size=size, sha256=digest.hexdigest())
