"""A registered model over a data set or raw files in the bucket."""

from __future__ import annotations

from typing import Annotated

from prefect import flow

import tasks.predict as tasks
from flows.parameters import Overrides, ParentRun, Preset, artifact_name, explained, load_config, trail_of
from flows.preprocess import preprocess
from modelyard.datasets import Split
from modelyard.predict import PredictConfig
from tasks.recording import resolve
from tasks.results import PredictResult


@flow(name="predict")
def predict(
    preset: Preset = "digits",
    model: Annotated[
        str, explained("Model", "Digest, URI, model@alias or model/version of a package; empty: the preset's champion")
    ] = "",
    files: Annotated[
        str,
        explained("Files", "Raw rows to answer, s3://bucket/folder/*.parquet, CSV or JSON Lines; empty: a data set"),
    ] = "",
    dataset: Annotated[str, artifact_name("the data set to answer where no files are named")] = "",
    split: Annotated[Split, explained("Split", "Which rows of the data set")] = "test",
    keep: Annotated[list[str], explained("Keep", "Columns to write beside the answers, an id say")] = [],
    items: Annotated[
        bool,
        explained(
            "Items", "For retrieval: the vectors of items, of a data set each once, in place of answers to queries"
        ),
    ] = False,
    overrides: Overrides = [],
    parent_run: ParentRun = "",
) -> PredictResult:
    """Write a model's answers to every row as Parquet. A run that was killed goes on where it was."""
    config = load_config(preset, "", overrides)
    package = resolve(model or f"{config.model_name}@champion")
    source = files
    if not files:
        source = resolve(dataset or preprocess(preset, "", overrides, parent_run).ref.digest)
    return tasks.predict(
        package, source, PredictConfig(split=split, keep=keep, items=items), trail_of(config, parent_run)
    ).result()
