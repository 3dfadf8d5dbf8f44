"""From clean shards to a trained model."""

from __future__ import annotations

from typing import Annotated

from prefect import flow

import tasks.train as tasks
from flows.parameters import DatasetUri, Overrides, ParentRun, Preset, artifact_name, load_config, trail_of
from flows.preprocess import preprocess
from tasks.recording import resolve
from tasks.results import StageResult


@flow(name="train")
def train(
    preset: Preset = "digits",
    dataset_uri: DatasetUri = "",
    dataset: Annotated[str, artifact_name("a preprocessed data set")] = "",
    overrides: Overrides = [],
    parent_run: ParentRun = "",
) -> StageResult:
    """Train the preset's network on a data set."""
    config = load_config(preset, dataset_uri, overrides)
    if not dataset:
        dataset = preprocess(preset, dataset_uri, overrides, parent_run).ref.digest
    return tasks.train(resolve(dataset), config.train, trail_of(config, parent_run)).result()
