"""What publishing a finished training takes of the machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Catalog, Origin, Work
from modelyard.models import GptConfig
from modelyard.models.build import load_model
from modelyard.models.weights import weight_files
from modelyard.preprocess import preprocess, snapshot
from modelyard.sample_data import topics_jsonl
from modelyard.settings import Settings
from modelyard.storage import Store
from modelyard.train import OptimizerConfig, StopConfig, TrainConfig
from modelyard.train.assembly import RankSpec, assemble
from modelyard.train.costs import memory_bytes
from modelyard.train.publish import publish
from tests.train import runs
from tests.train.ranks import Ranks, ranks
from tests.train.test_language import TEXTS
from tests.workbench import upload

SHARD = 64 * 10**6
ONE_STEP = TrainConfig(
    model=GptConfig(kind="gpt", layers=2, width=32, heads=4),
    optimizer=OptimizerConfig(name="rmsprop", learning_rate=0.001),
    batch_size=16,
    ranks=1,
    stop=StopConfig(max_steps=1),
)
LARGE = ONE_STEP.model_copy(update={"model": GptConfig(kind="gpt", layers=44, width=576, heads=8)})


def few_texts(catalog: Catalog) -> ArtifactRef:
    """So few that a large network reads them in seconds."""
    ((name, body),) = topics_jsonl()
    lines = [json.loads(line) for line in body.splitlines()[:40]]
    short = b"\n".join(json.dumps({**line, "text": line["text"][:200]}).encode() for line in lines)
    source = snapshot(catalog, upload(catalog.store, {name: short}), Origin())
    return preprocess(catalog, source.ref, TEXTS, Origin()).ref


def trained(settings: Settings, spec: RankSpec) -> None:
    made = assemble(spec, Catalog(Store(settings)), runs.CPU, lambda _: None, runs.local_rows(settings))
    made.fit()


def published(settings: Settings, spec: RankSpec, max_shard_bytes: int) -> tuple[float, ArtifactRef]:
    """Bytes that this process came to hold above what it held before; the artifact."""
    config = spec.config.model_copy(update={"max_shard_bytes": max_shard_bytes})
    told = spec.model_copy(update={"config": config})
    catalog = Catalog(Store(settings))
    Path("/proc/self/clear_refs").write_text("5")  # the kernel begins its count of the most anew
    before = memory_bytes(runs.CPU)
    work = Work(
        kind="model",
        config={"checkpoints": spec.checkpoints, "bytes": max_shard_bytes},
        inputs={"dataset": spec.dataset},
        code_version="test",
    )
    product = catalog.produce(
        work, lambda attempt: publish(catalog, attempt, told, config.model, sampled_bytes=0), Origin()
    )
    return memory_bytes(runs.CPU) - before, product.ref


@pytest.mark.soak
def test_publishing_holds_one_file_of_weights_and_never_the_network(
    alone: Ranks, settings: Settings, catalog: Catalog, store: Store, tmp_path: Path, folder: str
):
    """By the kernel's own count, of 700 MB of weights: in files of 64 MB, one of them, what it is read from, and what the
    store's client holds of parts on their way; in one file, all of them twice. Both are the same network, to the bit."""
    texts = few_texts(catalog)

    def spec(name: str, config: TrainConfig) -> RankSpec:
        told = RankSpec(dataset=texts, config=config, checkpoints=f"{store.root}/tests/{folder}/{name}")
        alone.run(trained, settings, told)
        return told

    small, large = spec("small", ONE_STEP), spec("large", LARGE)
    found: dict[int, tuple[float, ArtifactRef]] = {}
    for bound in (SHARD, 10**10):
        (tmp_path / str(bound)).mkdir()
        with ranks(1, tmp_path / str(bound)) as group:  # a fresh process
            group.run(published, settings, small, bound)  # imports and first uses
            (found[bound],) = group.run(published, settings, large, bound)
    (held, several), (whole, single) = found[SHARD], found[10**10]
    num_bytes = 4 * catalog.manifest(several).content.facts["parameters"]
    assert num_bytes > 6e8
    assert held < 0.5 * num_bytes
    assert whole > num_bytes
    networks: list[Any] = []
    for ref in (several, single):
        catalog.fetch(ref, tmp_path / ref.digest)
        networks.append(load_model(tmp_path / ref.digest))
    assert len(weight_files(path.name for path in (tmp_path / several.digest).iterdir())) > 10
    one, other = (network.state_dict() for network in networks)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_bound_is_another_trainings_where_it_is_another():
    """Trainings that leave it at its default are the work that they were."""
    own, other = TrainConfig(), TrainConfig(max_shard_bytes=10**9)
    assert "max_shard_bytes" not in own.identity()
    assert other.identity() == {**own.identity(), "max_shard_bytes": 10**9}
    with pytest.raises(ValidationError, match="greater than or equal to 1000"):
        TrainConfig(max_shard_bytes=999)
