"""Trainings that begin with the weights of another one's checkpoint."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Catalog, Origin
from modelyard.errors import ConfigError, DataError, DigestMismatch, NotFound, Preempted
from modelyard.models import MlpConfig
from modelyard.models.weights import weight_files
from modelyard.settings import Settings
from modelyard.storage import Store
from modelyard.train import InitConfig, OptimizerConfig, StopConfig, TrainConfig, train
from modelyard.train.assembly import RankSpec, assemble
from modelyard.train.checkpoints import CheckpointPointer, Checkpoints
from modelyard.train.sections import CheckpointConfig
from modelyard.train.stage import training_work
from modelyard.train.starting import Parents
from modelyard.train.starting_checkpoint import weights_of
from tests.train import runs
from tests.train.ranks import Ranks

OTHER = TrainConfig(
    model=MlpConfig(hidden_sizes=(24,)),
    optimizer=OptimizerConfig(name="adamw", learning_rate=0.01),
    ema_decay=0.5,
    batch_size=256,
    ranks=1,
    stop=StopConfig(max_steps=6),
)
ANOTHER_NETWORK = (
    r"train\.init\.checkpoint: .*another network: layers\.0\.bias is \[24\] there and \[32\] here; .*; layers\.3\.bias is"
    r" \[10\] there and \[16\] here; and 3 more"
)


def run_of(name: str, config: TrainConfig, dataset: ArtifactRef, store: Store, **told: Any) -> RankSpec:
    return RankSpec(dataset=dataset, config=config, checkpoints=f"{store.root}/tests/{name}/checkpoints", **told)


def stopped(settings: Settings, spec: RankSpec) -> dict[str, np.ndarray]:
    """Train for three steps as a rank does, and leave; the averages of its weights."""
    made = assemble(spec, Catalog(Store(settings)), runs.CPU, lambda _: None, runs.local_rows(settings))
    runs.stop_after(made, 3)
    with pytest.raises(Preempted, match="is saved"):
        made.fit()
    assert made.stepper.average
    return {name: value.numpy() for name, value in made.stepper.average.weights.items()}


def began(settings: Settings, spec: RankSpec) -> tuple[int, dict[str, np.ndarray]]:
    """What a rank has before its first step: entries of optimizer state, weights."""
    made = assemble(spec, Catalog(Store(settings)), runs.CPU, lambda _: None, runs.local_rows(settings))
    made._begin()
    weights = {name: value.numpy() for name, value in runs.weights(made).items()}
    return made.progress.step + sum(len(one.state) for one in made.stepper.optimizers), weights


def shelf(spec: RankSpec, store: Store) -> list[CheckpointPointer]:
    return Checkpoints(store, spec.checkpoints, CheckpointConfig()).pointers()


def starting_at(address: str, **changes: Any) -> TrainConfig:
    return OTHER.model_copy(update={"init": InitConfig(checkpoint=address), **changes})


def test_training_begins_with_another_ones_weights_alone(
    alone: Ranks, settings: Settings, catalog: Catalog, store: Store, dataset: ArtifactRef, folder: str
):
    """The averages where there are some, in several files if they are large; optimizer and progress are new. The folder stands for its newest checkpoint; what
    counts is the bytes, not where they lay; and another network is refused, with the shapes, before a rank is started."""
    other = run_of(f"{folder}/other", OTHER, dataset, store)
    (averages,) = alone.run(stopped, settings, other)
    (pointer,) = shelf(other, store)
    config = starting_at(other.checkpoints)
    weights = weights_of(catalog, config, Origin(), max_shard_bytes=3000)
    named = starting_at(f"{other.checkpoints}/{pointer.name}.json")
    assert weights == weights_of(catalog, named, Origin())
    ((state, found),) = alone.run(began, settings, run_of(f"{folder}/own", config, dataset, store, weights=weights))
    assert state == 0
    for name, value in averages.items():
        np.testing.assert_array_equal(found[name], value)

    assert weights is not None
    assert len(weight_files(catalog.manifest(weights).content.files)) > 2
    begins = {"weights": weights}
    keys = {training_work(dataset, one, Parents(), begins).key for one in (config, named)}
    assert len(keys) == 1
    assert training_work(dataset, OTHER, Parents()).key not in keys

    wider = starting_at(other.checkpoints, model=MlpConfig(hidden_sizes=(32, 16)))
    with pytest.raises(ConfigError, match=ANOTHER_NETWORK):
        train(catalog, dataset, wider, Origin(), _no_rank)
    alone.run(refused, settings, run_of(f"{folder}/own", wider, dataset, store, weights=weights))


def refused(settings: Settings, spec: RankSpec) -> None:
    """By the rank as well: a network of the user's own cannot be looked at before."""
    with pytest.raises(ConfigError, match=ANOTHER_NETWORK):
        began(settings, spec)


def _no_rank(event: object) -> None:
    pytest.fail(f"a rank was started: {event}")


def test_a_checkpoint_that_is_not_whole_is_named(
    alone: Ranks, settings: Settings, catalog: Catalog, store: Store, dataset: ArtifactRef, folder: str
):
    """A truncated file, a truncated pointer, none at all: each by its address, before a rank is started."""
    other = run_of(f"{folder}/other", OTHER.model_copy(update={"seed": 3}), dataset, store)
    alone.run(stopped, settings, other)
    (pointer,) = shelf(other, store)
    shard = next(name for name in pointer.files if name.startswith("shards/"))
    uri = f"{other.checkpoints}/{pointer.name}"
    store.put(f"{uri}/{shard}", store.get(f"{uri}/{shard}")[:-7])
    with pytest.raises(DigestMismatch, match=f"{uri}/{shard}"):
        train(catalog, dataset, starting_at(uri), Origin(), _no_rank)
    store.put(f"{uri}.json", store.get(f"{uri}.json")[:50])
    with pytest.raises(DataError, match=rf"train\.init\.checkpoint: {uri}\.json cannot be read: it is truncated"):
        train(catalog, dataset, starting_at(other.checkpoints), Origin(), _no_rank)
    nowhere = f"{store.root}/tests/{folder}/nowhere"
    with pytest.raises(NotFound, match=f"there is no checkpoint {nowhere}; the tag modelyard.checkpoints"):
        train(catalog, dataset, starting_at(nowhere), Origin(), _no_rank)


@pytest.mark.parametrize(("init", "words"), [
    ({"checkpoint": "/tmp/mine"}, "no address of one: write s3://"),
    ({"checkpoint": "s3://a/b", "model": "mine@champion"}, "both say which weights"),
])  # fmt: skip
def test_what_names_no_weights_or_two_is_refused(init: dict[str, str], words: str):
    """An address outside the bucket; a model and a checkpoint."""
    with pytest.raises(ValueError, match=words):
        InitConfig.model_validate(init)
