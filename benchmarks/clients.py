"""The clients that `storage` compares: ours, bare obstore, boto3 and s3fs, each used as its sensible user would.

All talk to the same bucket with the same credentials and may have as many requests under way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import boto3
import obstore
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from obstore.store import S3Store

from modelyard.settings import Settings
from modelyard.storage import Store
from modelyard.storage.transfer import PARALLEL_PARTS, PART_BYTES

PARALLEL_REQUESTS = 16
Objects = Mapping[str, bytes]


class Client(Protocol):
    """Many small objects, or one large file. Keys are relative to the bucket."""

    def put_many(self, objects: Objects) -> None: ...

    def get_many(self, keys: Sequence[str]) -> dict[str, bytes]: ...

    def upload(self, path: Path, key: str) -> None: ...

    def download(self, key: str, path: Path) -> None: ...


class Ours:
    """`modelyard.storage`, from a thread pool, as the catalog uses it."""

    def __init__(self, settings: Settings) -> None:
        self._store = Store(settings)

    def put_many(self, objects: Objects) -> None:
        _in_threads(lambda key: self._store.put(self._uri(key), objects[key]), objects)

    def get_many(self, keys: Sequence[str]) -> dict[str, bytes]:
        return dict(zip(keys, _in_threads(lambda key: self._store.get(self._uri(key)), keys), strict=True))

    def upload(self, path: Path, key: str) -> None:
        self._store.upload(path, self._uri(key))

    def download(self, key: str, path: Path) -> None:
        self._store.download(self._uri(key), path)

    def _uri(self, key: str) -> str:
        return f"{self._store.root}/{key}"


class Obstore:
    """obstore from a thread pool; a large object as one stream, with the library's own part sizes."""

    def __init__(self, settings: Settings) -> None:
        self._bucket = _bare_obstore(settings)

    def put_many(self, objects: Objects) -> None:
        _in_threads(lambda key: obstore.put(self._bucket, key, objects[key], use_multipart=False), objects)

    def get_many(self, keys: Sequence[str]) -> dict[str, bytes]:
        bodies = _in_threads(lambda key: obstore.get(self._bucket, key).bytes().to_bytes(), keys)
        return dict(zip(keys, bodies, strict=True))

    def upload(self, path: Path, key: str) -> None:
        obstore.put(self._bucket, key, path)

    def download(self, key: str, path: Path) -> None:
        with path.open("wb") as file:
            for chunk in obstore.get(self._bucket, key).stream():
                file.write(chunk)


class ObstoreAsync:
    """obstore from an event loop; a large object in parallel parts of the size that ours have."""

    def __init__(self, settings: Settings) -> None:
        self._bucket = _bare_obstore(settings)

    def put_many(self, objects: Objects) -> None:
        async def put(key: str) -> None:
            await obstore.put_async(self._bucket, key, objects[key], use_multipart=False)

        asyncio.run(_gather(put, objects))

    def get_many(self, keys: Sequence[str]) -> dict[str, bytes]:
        bodies: dict[str, bytes] = {}

        async def get(key: str) -> None:
            answer = await obstore.get_async(self._bucket, key)
            bodies[key] = (await answer.bytes_async()).to_bytes()

        asyncio.run(_gather(get, keys))
        return bodies

    def upload(self, path: Path, key: str) -> None:
        async def put() -> None:
            await obstore.put_async(self._bucket, key, path, chunk_size=PART_BYTES, max_concurrency=PARALLEL_PARTS)

        asyncio.run(put())

    def download(self, key: str, path: Path) -> None:
        asyncio.run(self._download(key, path))

    async def _download(self, key: str, path: Path) -> None:
        size = (await obstore.head_async(self._bucket, key))["size"]
        turns = asyncio.Semaphore(PARALLEL_PARTS)
        with path.open("wb") as file:

            async def fetch(start: int) -> None:
                async with turns:
                    end = min(start + PART_BYTES, size)
                    part = await obstore.get_range_async(self._bucket, key, start=start, end=end)
                    file.seek(start)
                    file.write(part)

            await asyncio.gather(*map(fetch, range(0, size, PART_BYTES)))


class Boto3:
    """boto3 from a thread pool, large files by its transfer manager."""

    def __init__(self, settings: Settings) -> None:
        assert settings.s3_secret_key
        self._bucket = settings.bucket
        self._client: Any = boto3.client(
            "s3",
            endpoint_url=settings.store_url,
            region_name=settings.s3_region,
            aws_access_key_id=settings.s3_access_key,
            aws_secret_access_key=settings.s3_secret_key.get_secret_value(),
            config=Config(
                s3={"addressing_style": "path"},
                max_pool_connections=PARALLEL_REQUESTS,
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )
        self._transfer = TransferConfig(multipart_chunksize=PART_BYTES, max_concurrency=PARALLEL_PARTS)

    def put_many(self, objects: Objects) -> None:
        def put(key: str) -> None:
            self._client.put_object(Bucket=self._bucket, Key=key, Body=objects[key])

        _in_threads(put, objects)

    def get_many(self, keys: Sequence[str]) -> dict[str, bytes]:
        bodies = _in_threads(lambda key: self._client.get_object(Bucket=self._bucket, Key=key)["Body"].read(), keys)
        return dict(zip(keys, bodies, strict=True))

    def upload(self, path: Path, key: str) -> None:
        self._client.upload_file(str(path), self._bucket, key, Config=self._transfer)

    def download(self, key: str, path: Path) -> None:
        self._client.download_file(self._bucket, key, str(path), Config=self._transfer)


class S3fs:
    """s3fs by its own bulk calls, large files by its own parts."""

    def __init__(self, settings: Settings) -> None:
        self._bucket = settings.bucket
        self._files = Store(settings).filesystem()

    def put_many(self, objects: Objects) -> None:
        self._files.pipe({self._path(key): body for key, body in objects.items()}, batch_size=PARALLEL_REQUESTS)

    def get_many(self, keys: Sequence[str]) -> dict[str, bytes]:
        bodies = self._files.cat([self._path(key) for key in keys], batch_size=PARALLEL_REQUESTS)
        if len(keys) == 1:  # it then hands over the body itself
            return {keys[0]: bodies}
        return {path.removeprefix(f"{self._bucket}/"): body for path, body in bodies.items()}

    def upload(self, path: Path, key: str) -> None:
        self._files.put_file(str(path), self._path(key), chunksize=PART_BYTES, max_concurrency=PARALLEL_PARTS)

    def download(self, key: str, path: Path) -> None:
        self._files.get_file(self._path(key), str(path))

    def _path(self, key: str) -> str:
        return f"{self._bucket}/{key}"


def _bare_obstore(settings: Settings) -> S3Store:
    assert settings.s3_access_key
    assert settings.s3_secret_key
    return S3Store(
        settings.bucket,
        config={
            "endpoint": settings.store_url,
            "region": settings.s3_region,
            "access_key_id": settings.s3_access_key,
            "secret_access_key": settings.s3_secret_key.get_secret_value(),
        },
        client_options={"allow_http": True},
    )


def _in_threads(act: Callable[[str], Any], keys: Iterable[str]) -> list[Any]:
    with ThreadPoolExecutor(PARALLEL_REQUESTS) as pool:
        return list(pool.map(act, keys))


async def _gather(act: Callable[[str], Any], keys: Iterable[str]) -> None:
    """All of them, so many at a time."""
    turns = asyncio.Semaphore(PARALLEL_REQUESTS)

    async def one(key: str) -> None:
        async with turns:
            await act(key)

    await asyncio.gather(*map(one, keys))
