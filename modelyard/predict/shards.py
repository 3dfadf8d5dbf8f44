"""Shards: files of rows in the bucket, as a data set's manifest or a listing names them, read a batch at a time."""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pandas as pd
from pyarrow import ArrowInvalid, parquet

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Catalog, file_sha256
from modelyard.datasets import Split
from modelyard.errors import DataError, DigestMismatch, ObjectChanged
from modelyard.storage import Store
from modelyard.transform import FeatureScale, RowTransform, TextTransform

FORMATS = (".parquet", ".csv", ".csv.gz", ".jsonl", ".jsonl.gz")


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One file. ``state`` is the sha256 that a manifest promises, or the ETag of a listing."""

    name: str
    uri: str
    state: str
    is_verified: bool


def shards_of_dataset(catalog: Catalog, ref: ArtifactRef, split: Split) -> list[Shard]:
    """The files of one split, in their order.

    Raises:
        DataError: the artifact is no data set, or has no such rows.
    """
    manifest = catalog.manifest(ref)
    names = sorted(name for name in manifest.content.files if name.startswith(f"{split}/"))
    if not names:
        raise DataError(f"{ref}: there are no files of the split {split!r} in it")
    return [
        Shard(
            name=name,
            uri=manifest.file_uri(ref.uri, name),
            state=manifest.content.files[name].sha256,
            is_verified=True,
        )
        for name in names
    ]


def shards_of_files(store: Store, uri: str) -> list[Shard]:
    """The raw files behind a folder, pattern or name, sorted.

    Raises:
        DataError: there are none, or one is of no known format.
    """
    found = sorted(store.glob(uri), key=lambda info: info.uri)
    if not found:
        raise DataError(f"{uri}: there is nothing to predict")
    foreign = [info.uri for info in found if not info.uri.endswith(FORMATS)]
    if foreign:
        raise DataError(f"{foreign[0]}: rows are read from {', '.join(FORMATS)}")
    return [
        Shard(name=PurePosixPath(info.uri).name, uri=info.uri, state=info.etag or str(info.size), is_verified=False)
        for info in found
    ]


def fetch(store: Store, shard: Shard, path: Path) -> str:
    """Download a shard and make sure that it is the one that was listed; returns its sha256.

    Raises:
        DigestMismatch: it is not what the manifest says.
        ObjectChanged: it was replaced since the listing.
    """
    store.download(shard.uri, path)
    actual = file_sha256(path)
    if shard.is_verified and actual != shard.state:
        raise DigestMismatch(shard.uri, shard.state, actual)
    if not shard.is_verified:
        info = store.head(shard.uri)
        if (info.etag or str(info.size)) != shard.state:
            raise ObjectChanged(f"{shard.uri}: replaced since it was listed; run again")
    return actual


def frames(path: Path, shard: Shard, transform: RowTransform, batch_rows: int) -> Iterator[pd.DataFrame]:
    """The rows of a fetched shard, at most so many at a time.

    Raises:
        DataError: it cannot be read; names it.
    """
    try:
        yield from _read(path, shard.name, transform, batch_rows)
    except (ArrowInvalid, ValueError, OSError, EOFError) as failure:
        raise DataError(f"{shard.uri}: cannot be read: {failure}") from failure


def _read(path: Path, name: str, transform: RowTransform, batch_rows: int) -> Iterator[pd.DataFrame]:
    if name.endswith(".parquet"):
        for batch in parquet.ParquetFile(path).iter_batches(batch_rows):
            yield batch.to_pandas()
        return
    with gzip.open(path) if name.endswith(".gz") else path.open("rb") as stream:
        if ".csv" in name:
            # What is no number stays the text that it is: "007" is a category, not 7.
            texts = dict.fromkeys(_text_columns(transform), "string[python]")
            yield from pd.read_csv(stream, chunksize=batch_rows, dtype=dict(texts))
        else:
            yield from pd.read_json(stream, lines=True, chunksize=batch_rows, dtype=False)  # ty: ignore[no-matching-overload]


def _text_columns(transform: RowTransform) -> Sequence[str]:
    if isinstance(transform, TextTransform):
        return transform.columns
    return [feature.name for feature in transform.features if not isinstance(feature, FeatureScale)]
