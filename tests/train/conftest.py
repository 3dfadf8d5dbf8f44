"""The digits, preprocessed once for all training tests."""

from __future__ import annotations

import pytest

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Catalog, Origin
from modelyard.preprocess import PreprocessConfig, preprocess, snapshot
from modelyard.sample_data import digits_parquet
from modelyard.storage import Store
from modelyard.train import OptimizerConfig, TrainConfig


@pytest.fixture(scope="session")
def catalog(store: Store) -> Catalog:
    return Catalog(store)


@pytest.fixture(scope="session")
def dataset(catalog: Catalog) -> ArtifactRef:
    return make_dataset(catalog)


def make_dataset(catalog: Catalog) -> ArtifactRef:
    folder = f"{catalog.store.root}/tests/digits"
    for name, body in digits_parquet():
        catalog.store.put(f"{folder}/{name}", body)
    source = snapshot(catalog, f"{folder}/*.parquet", Origin())
    return preprocess(catalog, source.ref, PreprocessConfig(target="label"), Origin()).ref


@pytest.fixture
def config() -> TrainConfig:
    """Small and quick: two epochs without a target."""
    return TrainConfig(max_epochs=2, optimizer=OptimizerConfig(learning_rate=0.003), silence_seconds=60)
