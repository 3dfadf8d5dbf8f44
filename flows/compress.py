"""From a trained model to the forms that can be served."""

from __future__ import annotations

from typing import Annotated

from prefect import flow

import tasks.compress as tasks
from flows.parameters import DatasetUri, Overrides, ParentRun, Preset, artifact_name, load_config, trail_of
from flows.preprocess import preprocess
from flows.train import train
from tasks.recording import resolve
from tasks.results import StageResult


@flow(name="compress")
def compress(
    preset: Preset = "digits",
    dataset_uri: DatasetUri = "",
    model: Annotated[str, artifact_name("a trained model")] = "",
    dataset: Annotated[str, artifact_name("the data set it was trained on")] = "",
    overrides: Overrides = [],
    parent_run: ParentRun = "",
) -> StageResult:
    """Convert a model to the serving runtime and make it small."""
    config = load_config(preset, dataset_uri, overrides)
    if not dataset:
        dataset = preprocess(preset, dataset_uri, overrides, parent_run).ref.digest
    if not model:
        model = train(preset, dataset_uri, dataset, overrides, parent_run).ref.digest
    compressed = tasks.compress(resolve(model), resolve(dataset), config.compress, trail_of(config, parent_run))
    return compressed.result()
