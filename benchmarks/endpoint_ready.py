"""How soon a version whose file is on this machine can answer: verified, loaded, warmed and probed, as the endpoint does it."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from benchmarks.figures import Contestant, Figure, compare, take_turns
from modelyard.catalog import Catalog
from modelyard.serve.cache import Cache
from modelyard.serve.limits import Limits
from modelyard.serve.loading import Loader
from modelyard.serve.state import LocalState
from modelyard.serve.verifier import Verifier
from modelyard.serve.workers import SubprocessPool
from modelyard.settings import Settings
from modelyard.storage import Store

BOUND, READY_SECONDS = "the bound", 1.0


def measure(settings: Settings, home: Path, model: str, file: Path, rounds: int) -> Figure:
    """Start the served version of a model again and again, from the cache that an endpoint left in ``home``."""
    contestants: dict[str, Contestant] = {
        model: lambda: {"seconds": asyncio.run(_start(settings, home, model))},
        BOUND: lambda: {"seconds": READY_SECONDS},
    }
    samples = take_turns(contestants, rounds)
    name = f"a version of {file.stat().st_size / 1e6:.0f} MB, from its file to ready"
    return compare(samples, "seconds", subject=model, against=BOUND, name=name, unit="s", better="less", target=1.0)


async def _start(settings: Settings, home: Path, model: str) -> float:
    """Seconds."""
    revision = LocalState(home / "endpoint" / "state.json").read()
    assert revision
    cache = Cache(home / "endpoint" / "cache", Catalog(Store(settings)), Verifier(home / "trusted-keys"))
    limits = Limits()
    loader = Loader(cache=cache, pool=SubprocessPool(limits), limits=limits, on_restart=lambda _: None)
    began = time.perf_counter()
    try:
        version = await loader.start(model, revision.models[model].versions[0])
        seconds = time.perf_counter() - began
        await version.stop(0)
    finally:
        cache.close()
    return seconds
