"""From a compressed model to a verdict on it."""

from __future__ import annotations

from typing import Annotated

from prefect import State, flow
from prefect.states import Failed

import tasks.evaluate as tasks
from flows.compress import compress
from flows.parameters import DatasetUri, Overrides, ParentRun, Preset, artifact_name, explained, load_config, trail_of
from flows.preprocess import preprocess
from flows.train import train
from modelyard.task_kinds import LANGUAGE_TASKS
from tasks.recording import resolve
from tasks.results import StageResult


@flow(name="evaluate")
def evaluate(
    preset: Preset = "digits",
    dataset_uri: DatasetUri = "",
    candidate: Annotated[str, artifact_name("a compressed model, or a trained language model")] = "",
    dataset: Annotated[str, artifact_name("the data set whose test split judges it")] = "",
    overrides: Overrides = [],
    parent_run: ParentRun = "",
    champion: Annotated[
        str,
        explained("Champion", "What to hold it against: digest, URI, model@alias or model/version; empty: what serves"),
    ] = "",
) -> StageResult | State[StageResult]:
    """Judge a model on the test split, against its float parent and the present champion."""
    config = load_config(preset, dataset_uri, overrides)
    if not dataset:
        dataset = preprocess(preset, dataset_uri, overrides, parent_run).ref.digest
    if not candidate:
        is_language = config.preprocess.task in LANGUAGE_TASKS  # which nobody compresses
        made = train(preset, dataset_uri, dataset, overrides, parent_run) if is_language else compress(
            preset, dataset_uri, "", dataset, overrides, parent_run
        )  # fmt: skip
        candidate = made.ref.digest
    subject = resolve(candidate)
    rival = resolve(champion) if champion else tasks.find_champion(config.model_name, subject)
    verdict = tasks.evaluate(subject, resolve(dataset), rival, config.evaluate, trail_of(config, parent_run))
    if verdict.name == "Refused":
        # A state of our own: the task's would count as "some task failed" and lose its name.
        refusal = verdict.result(raise_on_failure=False)
        return Failed(name="Refused", message=str(refusal), data=refusal)
    return verdict.result()
