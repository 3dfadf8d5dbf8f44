"""The digits, preprocessed once for all training tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Catalog, Origin
from modelyard.preprocess import PreprocessConfig, preprocess, snapshot
from modelyard.sample_data import digits_parquet
from modelyard.storage import Store
from modelyard.train import OptimizerConfig, TrainConfig
from tests.textbench import network_folder, text_config, text_dataset
from tests.train.ranks import Ranks, ranks


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


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny network of `transformers`."""
    return network_folder(tmp_path_factory.mktemp("pretrained") / "tiny")


@pytest.fixture(scope="session")
def texts(catalog: Catalog, source: Path) -> ArtifactRef:
    """Classified texts, read by its tokenizer."""
    return text_dataset(catalog, text_config(f"file://{source}"))


@pytest.fixture
def config() -> TrainConfig:
    """Small and quick: two epochs without a target."""
    return TrainConfig(max_epochs=2, optimizer=OptimizerConfig(learning_rate=0.003), silence_seconds=60)


@pytest.fixture(scope="session")
def alone(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    """A group of one rank that stays."""
    with ranks(1, tmp_path_factory.mktemp("ranks")) as group:
        yield group


@pytest.fixture(scope="session")
def pair(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    """A group of two ranks that stays."""
    with ranks(2, tmp_path_factory.mktemp("ranks")) as group:
        yield group


@pytest.fixture(scope="session")
def trio(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    """A group of three ranks that stays."""
    with ranks(3, tmp_path_factory.mktemp("ranks")) as group:
        yield group


@pytest.fixture
def folder() -> str:
    """A fresh folder for checkpoints."""
    return uuid4().hex
