"""What tests of several rooms work with: a catalog of their own, data in the bucket, a model trained in a blink."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from uuid import uuid4

import hypothesis
import numpy as np
import pandas as pd
import torch
from torch import nn

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Attempt, Catalog, Origin, Work
from modelyard.datasets import TARGET_FILE, TRANSFORM_FILE, Dataset
from modelyard.models.build import build_model, save_model
from modelyard.models.config import MlpConfig, ModelSpec
from modelyard.models.weights import MAX_SHARD_BYTES
from modelyard.preprocess import PreprocessConfig, preprocess, snapshot
from modelyard.sample_data import digits_parquet
from modelyard.settings import Settings
from modelyard.storage import Store

# For hypothesis: a property is about values, not time (the machine may be busy), and the suite has a time to keep.
PROPERTY = hypothesis.settings(deadline=None, max_examples=40)
ORIGIN = Origin(flow_run_id="flow", commit="abc")
DIGITS = PreprocessConfig(target="label", ranges={"*": (0, 16)})


class OwnStore(Store):
    """A store that keeps artifacts below a folder of its own, so that no test finds the work of another."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._folder = f"tests/{uuid4().hex}"

    @property
    def root(self) -> str:
        return f"{super().root}/{self._folder}"


def own_catalog(settings: Settings) -> Catalog:
    return Catalog(OwnStore(settings))


def upload(store: Store, files: Mapping[str, bytes]) -> str:
    """Put files into a fresh folder; its URI."""
    folder = f"{store.root}/raw-{uuid4().hex[:8]}"
    for name, body in files.items():
        store.put(f"{folder}/{name}", body)
    return folder


def parquet_bytes(frame: pd.DataFrame) -> bytes:
    buffer = BytesIO()
    frame.to_parquet(buffer, index=False)
    return buffer.getvalue()


def csv_bytes(frame: pd.DataFrame) -> bytes:
    return frame.to_csv(index=False).encode()


def blobs(num_rows: int = 300, seed: int = 0) -> pd.DataFrame:
    """Three well separated classes in two dimensions: columns a, b, kind."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 3, num_rows)
    points = rng.normal(scale=0.5, size=(num_rows, 2)) + kind[:, None] * 3
    return pd.DataFrame({"a": points[:, 0], "b": points[:, 1], "kind": kind})


def digits_dataset(catalog: Catalog) -> ArtifactRef:
    folder = upload(catalog.store, dict(digits_parquet()))
    return preprocess(catalog, snapshot(catalog, folder, ORIGIN).ref, DIGITS, ORIGIN).ref


def quick_model(
    catalog: Catalog, dataset_ref: ArtifactRef, epochs: int, max_shard_bytes: int = MAX_SHARD_BYTES
) -> ArtifactRef:
    """A model artifact as training publishes it, after a few full-batch steps in this process."""

    def build(attempt: Attempt) -> None:
        folder = attempt.scratch / "dataset"
        dataset = Dataset.fetch(catalog, dataset_ref, folder, ["train"])
        spec = ModelSpec(
            model=MlpConfig(hidden_sizes=(64,)),
            input_width=dataset.transform.width,
            output_width=len(dataset.target.classes),
        )
        for name in save_model(spec, _weights(spec, dataset, epochs), attempt.scratch, max_shard_bytes):
            attempt.add(name, attempt.scratch / name)
        for name in (TRANSFORM_FILE, TARGET_FILE):
            attempt.add(name, Path(folder / name))

    told = {"epochs": epochs, "max_shard_bytes": max_shard_bytes}
    work = Work(kind="model", config=told, inputs={"dataset": dataset_ref}, code_version="test")
    return catalog.produce(work, build, ORIGIN).ref


def _weights(spec: ModelSpec, dataset: Dataset, epochs: int) -> dict[str, torch.Tensor]:
    features, targets = map(torch.from_numpy, dataset.load("train"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model(spec.model, spec.input_width, spec.output_width)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(epochs):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(features), targets).backward()
            optimizer.step()
    return model.state_dict()
