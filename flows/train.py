"""From clean shards to a trained model."""

from __future__ import annotations

from typing import Annotated

from prefect import flow

import tasks.train as tasks
from flows.parameters import (
    DatasetUri,
    Overrides,
    ParentRun,
    Preset,
    artifact_name,
    load_config,
    model_name,
    trail_of,
)
from flows.preprocess import preprocess
from tasks.recording import resolve, resolve_model
from tasks.results import StageResult


@flow(name="train", persist_result=True, result_serializer="json")
def train(
    preset: Preset = "digits",
    dataset_uri: DatasetUri = "",
    dataset: Annotated[str, artifact_name("a preprocessed data set")] = "",
    overrides: Overrides = [],
    parent_run: ParentRun = "",
    init: Annotated[str, model_name("Init", "begin with its network and weights")] = "",
    teacher: Annotated[str, model_name("Teacher", "learn from its answers too")] = "",
) -> StageResult:
    """Train the preset's network on a data set, or another model's network from its weights on."""
    config = load_config(preset, dataset_uri, overrides)
    if not dataset:
        dataset = preprocess(preset, dataset_uri, overrides, parent_run).ref.digest
    begins, teaches = init or config.train.init.model, teacher or config.train.distill.teacher
    trained = tasks.train(
        resolve(dataset),
        config.train,
        trail_of(config, parent_run),
        resolve_model(begins) if begins else None,
        resolve_model(teaches) if teaches else None,
    )
    return trained.result()
