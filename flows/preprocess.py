"""From raw files to clean shards and a fitted transform."""

from __future__ import annotations

from prefect import flow

import tasks.preprocess as tasks
from flows.parameters import DatasetUri, Overrides, ParentRun, Preset, load_config, trail_of
from tasks.results import StageResult


@flow(name="preprocess")
def preprocess(
    preset: Preset = "digits", dataset_uri: DatasetUri = "", overrides: Overrides = [], parent_run: ParentRun = ""
) -> StageResult:
    """Write down what the data set consists of, then clean, split and transform it."""
    config = load_config(preset, dataset_uri, overrides)
    trail = trail_of(config, parent_run)
    source = tasks.snapshot(config.dataset_uri, trail).result()
    return tasks.preprocess(source.ref, config.preprocess, config.dataset_uri, trail).result()
