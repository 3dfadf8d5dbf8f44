"""From a preset and a space to the best configuration of it."""

from __future__ import annotations

from typing import Annotated

from prefect import State, flow
from prefect.futures import PrefectFuture, as_completed
from prefect.states import Failed

import tasks.train as training
import tasks.tune as tasks
from flows.lifecycle import lifecycle
from flows.parameters import DatasetUri, Overrides, ParentRun, Preset, artifact_name, explained, load_config, trail_of
from flows.preprocess import preprocess
from tasks.recording import resolve
from tasks.results import TuneResult


@flow(name="tune", persist_result=True, result_serializer="json")
def tune(
    preset: Preset = "digits",
    dataset_uri: DatasetUri = "",
    dataset: Annotated[str, artifact_name("a preprocessed data set")] = "",
    trials: Annotated[
        int, explained("Trials", "How many, the preset as it is included; 0: the preset's number", ge=0, le=1000)
    ] = 0,
    then_lifecycle: Annotated[
        bool, explained("Then lifecycle", "Take the best configuration all the way to the endpoint")
    ] = False,
    overrides: Overrides = [],
    parent_run: ParentRun = "",
) -> TuneResult | State[TuneResult]:
    """Train competing configurations, judged on the validation split; a run that was killed goes on where it was."""
    config = load_config(preset, dataset_uri, [*overrides, *([f"tune.trials={trials}"] if trials else [])])
    tasks.require_tunable(config)
    if not dataset:
        dataset = preprocess(preset, dataset_uri, overrides, parent_run).ref.digest
    subject = tasks.Subject(config=config, dataset=resolve(dataset))
    with tasks.tuning(subject, trail_of(config, parent_run)) as run:
        _compete(run)
        decision = run.study.decide()
        best = run.best(decision)
        # The winner was trained already: this finds it, and makes it again where housekeeping was faster.
        trained = training.train(best.dataset, best.config.train, run.below, best.init, best.teacher).result()
        found = run.conclude(decision, best, trained)
    return _carried_on(found) if then_lifecycle or config.tune.then_lifecycle else found


def _compete(run: tasks.TuningRun) -> None:
    """Keep as many trials under way as the preset says, until the study asks no more."""
    under_way: list[PrefectFuture] = []
    while True:
        while len(under_way) < run.study.config.concurrency and (asked := run.ask()):
            under_way.append(tasks.trial.submit(run.subject, asked, run.study.seconds_left, run.below))
        if not under_way:
            return
        done = next(iter(as_completed(under_way)))
        under_way.remove(done)
        trial = done.result()
        run.study.tell(trial.number, trial.told)


def _carried_on(found: TuneResult) -> TuneResult | State[TuneResult]:
    """The lifecycle of the best configuration. What a gate refuses there is this run's own state too."""
    ended = lifecycle(found.preset_uri, return_state=True)  # ty: ignore[no-matching-overload]
    if not ended.is_completed():
        return Failed(name=ended.name, message=f"{found.headline}; its lifecycle: {ended.message}")
    return found.model_copy(update={"lifecycle": ended.result()})
