"""The lifecycle as plain calls of the core, one after another: what the flow is compared with.

python -m benchmarks.plain <dataset uri> [override ...]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import pandas as pd

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Catalog, Origin
from modelyard.compress import compress
from modelyard.evaluate import evaluate
from modelyard.preprocess import preprocess, snapshot
from modelyard.presets import LifecycleConfig, load_preset
from modelyard.rollout import Release, rollout
from modelyard.sample_data import digits_parquet
from modelyard.settings import Settings, load_settings
from modelyard.storage import Store
from modelyard.tracking import Tracker
from modelyard.train import train


@dataclass(frozen=True, kw_only=True)
class Session:
    """The clients that the core is given."""

    settings: Settings
    catalog: Catalog
    tracker: Tracker

    @classmethod
    def open(cls, settings: Settings) -> Session:
        return cls(settings=settings, catalog=Catalog(Store(settings)), tracker=Tracker(settings))


def run(session: Session, dataset_uri: str | None, overrides: Sequence[str], *, preset: str = "digits") -> Release:
    """The stages, each on what the one before it made; nobody is champion of a new name.

    Args:
        dataset_uri: None: what the preset says.
    """
    store = session.catalog.store
    more = [f"dataset_uri={dataset_uri}"] if dataset_uri else []
    config = load_preset(preset, store, [*overrides, *more])
    dataset = prepare(session.catalog, config)
    model = train(session.catalog, dataset, config.train, Origin()).ref
    package = compress(session.catalog, model, dataset, config.compress, Origin()).ref
    verdict = evaluate(session.catalog, package, dataset, None, config.evaluate, Origin()).ref
    return rollout(
        session.catalog,
        session.tracker,
        session.settings,
        model_name=config.model_name,
        candidate=package,
        verdict=verdict,
        config=config.rollout,
        origin=Origin(),
    )


def prepare(catalog: Catalog, config: LifecycleConfig) -> ArtifactRef:
    """From raw files to a data set."""
    source = snapshot(catalog, config.dataset_uri, Origin()).ref
    return preprocess(catalog, source, config.preprocess, Origin()).ref


def place_digits(store: Store, seed: int) -> str:
    """The digits in an order of the seed's own: the same work, but work that nobody has done."""
    frame = pd.concat(pd.read_parquet(BytesIO(body)) for _, body in digits_parquet())
    return place(store, frame.sample(frac=1, random_state=seed), f"digits-{seed}")


def place_noise(store: Store, width: int, rows: int = 600) -> str:
    """As many columns as an endpoint's load test wants; the labels mean nothing."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.random((rows, width)), columns=[f"x{number}" for number in range(width)])
    return place(store, frame.assign(label=rng.integers(0, 10, rows)), f"noise-{width}")


def place(store: Store, frame: pd.DataFrame, name: str) -> str:
    """Put a frame into the bucket as a data set; its URI."""
    buffer = BytesIO()
    frame.to_parquet(buffer, index=False)
    folder = f"{store.root}/raw/{name}"
    store.put(f"{folder}/rows.parquet", buffer.getvalue())
    return f"{folder}/*.parquet"


if __name__ == "__main__":
    run(Session.open(load_settings()), sys.argv[1], sys.argv[2:])
