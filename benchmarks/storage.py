"""`modelyard.storage` against the clients it is made of: many small objects, and one large file."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.clients import PARALLEL_REQUESTS, Boto3, Client, Objects, Obstore, ObstoreAsync, Ours, S3fs
from benchmarks.figures import Contestant, Figure, Findings, Samples, compare, take_turns
from benchmarks.installation import Installation
from commands.parts import STORE
from modelyard.settings import Settings

OURS = "modelyard.storage"
# The promise is kept against both ways to use obstore, whichever is quicker on the day.
TARGETS: Mapping[str, float] = {"obstore, threads": 0.9, "obstore, asyncio": 0.9}
SMALL_BYTES = 10_000


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How much of each."""

    num_small: int
    large_bytes: int
    small_rounds: int
    large_rounds: int


FULL = Counts(num_small=2000, large_bytes=10**9, small_rounds=7, large_rounds=5)
QUICK = Counts(num_small=50, large_bytes=20 * 10**6, small_rounds=2, large_rounds=1)


def run(installation: Installation, quick: bool) -> Findings:
    """Measure; every byte that comes back is compared with what went."""
    counts = QUICK if quick else FULL
    clients = _clients(installation.up([STORE]))
    small = _small(clients, counts)
    large = _large(clients, counts, installation.scratch)
    return Findings(
        figures=[
            *_figures(small, "put", f"put {counts.num_small:,} x 10 KB", "objects/s"),
            *_figures(small, "get", f"get {counts.num_small:,} x 10 KB", "objects/s"),
            *_figures(large, "upload", f"upload {counts.large_bytes / 1e6:,.0f} MB", "MB/s"),
            *_figures(large, "download", f"download {counts.large_bytes / 1e6:,.0f} MB", "MB/s"),
            *_figures(small, "put CPU", "client's CPU per put of 10 KB", "us", better="less"),
            *_figures(small, "get CPU", "client's CPU per get of 10 KB", "us", better="less"),
        ],
        notes=[
            (
                f"Small objects: {PARALLEL_REQUESTS} requests under way for every client; {counts.small_rounds} rounds."
                f" The large file: 8 parts of 16 MB under way where the client lets one say so; {counts.large_rounds} rounds."
            ),
            (
                "`obstore, threads` moves the large file as the library does by itself: 12 parts of 5 MB up, one stream down;"
                " `obstore, asyncio` in parts as ours."
            ),
            (
                "The same store, bucket, keys and files; every byte that came back was compared, outside the measured time."
                " The store runs on the same cores and takes most of them."
            ),
        ],
    )


def _clients(settings: Settings) -> dict[str, Client]:
    return {
        OURS: Ours(settings),
        "obstore, threads": Obstore(settings),
        "obstore, asyncio": ObstoreAsync(settings),
        "s3fs": S3fs(settings),
        "boto3": Boto3(settings),
    }


def _figures(samples: Samples, measure: str, name: str, unit: str, better: Any = "more") -> list[Figure]:
    targets = TARGETS if better == "more" else {}
    return [
        compare(
            samples,
            measure,
            subject=OURS,
            against=other,
            name=name,
            unit=unit,
            better=better,
            target=targets.get(other),
        )
        for other in samples
        if other != OURS
    ]


def _small(clients: Mapping[str, Client], counts: Counts) -> Samples:
    objects = {f"bench/small/{number}": os.urandom(SMALL_BYTES) for number in range(counts.num_small)}
    contestants: dict[str, Contestant] = {
        name: lambda client=client: _small_sample(client, objects) for name, client in clients.items()
    }
    return take_turns(contestants, counts.small_rounds)


def _small_sample(client: Client, objects: Objects) -> dict[str, float]:
    count = len(objects)
    _, put_seconds, put_cpu = _timed(lambda: client.put_many(objects))
    found, get_seconds, get_cpu = _timed(lambda: client.get_many(list(objects)))
    assert found == objects, "bytes changed on the way"
    return {
        "put": count / put_seconds,
        "get": count / get_seconds,
        "put CPU": put_cpu / count * 1e6,
        "get CPU": get_cpu / count * 1e6,
    }


def _large(clients: Mapping[str, Client], counts: Counts, folder: Path) -> Samples:
    path = folder / "large"
    with path.open("wb") as file:
        for _ in range(counts.large_bytes // 10**6):
            file.write(os.urandom(10**6))
    digest = _digest(path)
    contestants: dict[str, Contestant] = {
        name: lambda client=client: _large_sample(client, path, digest) for name, client in clients.items()
    }
    try:
        return take_turns(contestants, counts.large_rounds)
    finally:
        path.unlink()


def _large_sample(client: Client, path: Path, digest: str) -> dict[str, float]:
    back, size = path.with_name("back"), path.stat().st_size
    _, up_seconds, _ = _timed(lambda: client.upload(path, "bench/large"))
    _, down_seconds, _ = _timed(lambda: client.download("bench/large", back))
    assert _digest(back) == digest, "bytes changed on the way"
    back.unlink()
    return {"upload": size / up_seconds / 1e6, "download": size / down_seconds / 1e6}


def _timed(act: Callable[[], Any]) -> tuple[Any, float, float]:
    """What it returns, its wall seconds, and the CPU seconds that this process spent."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = act()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
