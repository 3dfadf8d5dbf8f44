"""From a trained model to the form that can be served best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from prefect import flow

import tasks.compress as tasks
import tasks.train as training
from flows.parameters import DatasetUri, Overrides, ParentRun, Preset, artifact_name, load_config, trail_of
from flows.preprocess import preprocess
from flows.train import train
from modelyard.artifacts import ArtifactRef
from modelyard.compress.outcomes import Fell, Outcome, Recipe
from modelyard.compress.search import conduct
from modelyard.compress.techniques import Distil, NetworkTechnique, PruneWeights, Recovery
from modelyard.errors import PermanentError
from modelyard.train import DistillConfig, InitConfig, TrainConfig
from tasks.recording import Trail, resolve, resolve_model
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
    """Make a model small and fast for the runtime that serves it: by the forms named, or by a search."""
    config = load_config(preset, dataset_uri, overrides)
    if not dataset:
        dataset = preprocess(preset, dataset_uri, overrides, parent_run).ref.digest
    if not model:
        model = train(preset, dataset_uri, dataset, overrides, parent_run).ref.digest
    subject = tasks.Subject(model=resolve_model(model), dataset=resolve(dataset), config=config.compress)
    trail = trail_of(config, parent_run)
    if config.compress.search is None or tasks.is_made(subject):
        return tasks.compress(subject.model, subject.dataset, config.compress, trail).result()
    return search(subject, config.train, trail)


def search(subject: tasks.Subject, config: TrainConfig, trail: Trail) -> StageResult:
    """Try what the search asks for, until it asks no more; package the winner.

    Args:
        config: how the model was trained: students and recovery fine-tunes are trained alike.
    """
    with tasks.search_run(subject, trail) as run:

        def build(recipes: Sequence[Recipe]) -> dict[str, Outcome]:
            return _build(run, config, recipes)

        def measure(recipes: Sequence[Recipe]) -> dict[str, Outcome]:
            return tasks.measure(subject, {recipe.name: run.candidates[recipe.name] for recipe in recipes})

        return run.package(conduct(run.search, build, measure))


def _build(run: tasks.SearchRun, config: TrainConfig, recipes: Sequence[Recipe]) -> dict[str, Outcome]:
    """Candidates, several at a time; a network that more than one needs is made before."""
    found: dict[str, Outcome] = {}
    ready = []
    for recipe in recipes:
        network = _network(run, config, recipe)
        if isinstance(network, Fell):
            found[recipe.name] = network
        else:
            ready.append((recipe, network))
    for start in range(0, len(ready), run.search.config.builders):
        under_way = [_submit(run, *one) for one in ready[start : start + run.search.config.builders]]
        for future in under_way:
            candidate = future.result()
            run.candidates[candidate.name] = candidate
            found[candidate.name] = candidate.outcome
    return found


def _submit(run: tasks.SearchRun, recipe: Recipe, network: ArtifactRef):  # noqa: ANN202 (Prefect's future)
    float_form = run.candidates[recipe.trunk].ref if recipe.form else None
    return tasks.build.submit(run.subject, recipe, network, float_form, run.below)


def _network(run: tasks.SearchRun, config: TrainConfig, recipe: Recipe) -> ArtifactRef | Fell:
    """The network of a recipe: as it was trained, smaller, or smaller and trained again."""
    if recipe.network is None:
        return run.subject.model
    label = recipe.network.label
    if label not in run.networks:
        made = _smaller(run, config, recipe.network)
        if isinstance(made, Fell):
            return made
        run.networks[label] = made
    return run.networks[label]


def _smaller(run: tasks.SearchRun, config: TrainConfig, technique: NetworkTechnique) -> ArtifactRef | Fell:
    subject = run.subject
    try:
        if isinstance(technique, Distil):
            narrow = tasks.student(subject, technique)
            taught = _taught(config, technique).model_copy(update={"model": narrow})
            return training.train(subject.dataset, taught, run.below, None, subject.model).result().ref
        smaller = tasks.shrink(subject, technique, run.below).result()
        if isinstance(smaller, Fell) or technique.recovery is None:
            return smaller
        zeros = InitConfig(keep_zeros=isinstance(technique, PruneWeights))
        again = _shorter(config, technique.recovery).model_copy(update={"init": zeros})
        return training.train(subject.dataset, again, run.below, smaller).result().ref
    except PermanentError as failure:
        return Fell(reason=f"its training failed: {failure}")


def _shorter(config: TrainConfig, recovery: Recovery) -> TrainConfig:
    """The preset's training as a fine-tune: to the best it reaches in a few epochs, at a low rate."""
    rate = recovery.learning_rate or config.optimizer.learning_rate / 10
    optimizer = config.optimizer.model_copy(update={"learning_rate": rate})
    return config.model_copy(update={"optimizer": optimizer, "max_epochs": recovery.max_epochs, "target": None})


def _taught(config: TrainConfig, technique: Distil) -> TrainConfig:
    """The preset's training, with a teacher, to the best it reaches."""
    lesson = DistillConfig(temperature=technique.temperature, weight=technique.weight)
    changed = {"distill": lesson, "init": InitConfig(), "target": None}
    if technique.recovery:
        changed["max_epochs"] = technique.recovery.max_epochs
    if technique.recovery and technique.recovery.learning_rate:
        changed["optimizer"] = config.optimizer.model_copy(update={"learning_rate": technique.recovery.learning_rate})
    return config.model_copy(update=changed)
