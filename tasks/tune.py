"""Tuning as tasks: a trial is a training that may be ended early; what came of it is found again."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

from prefect import task
from prefect.artifacts import create_image_artifact, create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed, State

from modelyard.artifacts import ArtifactRef, Frozen
from modelyard.catalog import Origin, Product
from modelyard.errors import ConfigError, PermanentError, TrainingFailed, TrainingTakenOver, TrialPruned
from modelyard.metrics import LOWER_IS_BETTER
from modelyard.preprocess import preprocess as preprocess_core
from modelyard.presets import LifecycleConfig, preset_text, require_tuning, trial_config
from modelyard.tracking import Point
from modelyard.train import (
    HISTORY_FILE,
    Parents,
    RankEvent,
    TrainConfig,
    beginnings,
    training_work,
    validations_so_far,
)
from modelyard.train import train as train_core
from modelyard.tune import Ask, Decision, Study, Told
from modelyard.tune.pruning import Judge, best_of
from modelyard.tune.sampler import TpeSampler, require_optuna
from modelyard.tune.trials import Trials, told_by
from tasks.devices import device_slots
from tasks.policy import BACKOFF, JITTER, RETRIES, is_transient
from tasks.recording import Record, Trail, recording, resolve_model
from tasks.results import StageResult, TuneResult
from tasks.session import session
from tasks.train import Narrator


class Subject(Frozen):
    """What a tuning is about: the configuration whose keys it varies, and the data set that this gives."""

    config: LifecycleConfig
    dataset: ArtifactRef

    @property
    def metric(self) -> str:
        return self.config.tuned_metric

    @property
    def lower_is_better(self) -> bool:
        return self.metric in LOWER_IS_BETTER


class Trial(Frozen):
    """A trial that is over."""

    number: int
    told: Told


class Best(Frozen):
    """What the best trial was made with, ready to be trained (or found) as a stage."""

    config: LifecycleConfig
    dataset: ArtifactRef
    init: ArtifactRef | None = None
    teacher: ArtifactRef | None = None


@dataclass
class TuningRun:
    """One tuning while it runs."""

    subject: Subject
    study: Study
    trials: Trials
    record: Record
    trail: Trail
    waiting: list[Ask]

    @property
    def below(self) -> Trail:
        """Where the records of its trials belong."""
        return self.trail.model_copy(update={"parent_run_id": self.record.run_id})

    def ask(self) -> Ask | None:
        """The next trial: one that was interrupted, else a new one, written down before it begins."""
        if self.waiting:
            return self.waiting.pop(0)
        asked = self.study.ask()
        return self.trials.keep(asked) if asked else None

    def best(self, decision: Decision) -> Best:
        """The winner's configuration and data set."""
        config = trial_config(self.subject.config, decision.best.parameters)
        dataset = _dataset(self.record, self.subject, config)
        init, teacher = _parents(config.train)
        return Best(config=config, dataset=dataset, init=init, teacher=teacher)

    def conclude(self, decision: Decision, best: Best, trained: StageResult) -> TuneResult:
        """Table, picture and preset of what was found."""
        uri = publish(decision, best, self.record.run_id, self.trail)
        value = decision.best.told.value
        assert value is not None
        self.record.session.tracker.log_metrics(self.record.run_id, [Point(f"best_{decision.metric}", value)])
        return TuneResult(
            ref=trained.ref,
            headline=decision.why,
            trial=decision.winner,
            num_trials=len(decision.standings),
            metric=decision.metric,
            value=value,
            parameters=decision.best.parameters,
            preset_uri=uri,
            mlflow_run_id=self.record.run_id,
            usage=self.record.usage(),
        )


@contextmanager
def tuning(subject: Subject, trail: Trail) -> Generator[TuningRun]:
    """The MLflow run that the trials' runs nest below, and the study with every trial that was made before."""
    with recording("tune", subject.config.tune.model_dump(mode="json"), trail) as record:
        record.session.tracker.log_dataset(
            record.run_id, name=trail.model_name, uri=subject.dataset.uri, digest=subject.dataset.digest
        )
        study, trials = _new_study(subject), _trials(subject)
        waiting = _take_up(study, trials, subject.config.tune.trials)
        yield TuningRun(subject=subject, study=study, trials=trials, record=record, trail=trail, waiting=waiting)


def require_tunable(config: LifecycleConfig) -> None:
    """Refuse a tuning that has nothing to tune, or nothing to do it with, before anything is computed.

    Raises:
        ConfigError: the space is empty, or does not fit the rest of the configuration.
        MissingExtra: Optuna is not installed.
    """
    if not config.tune.space:
        raise ConfigError(
            "tune.space",
            "names no key; for example {train.optimizer.learning_rate: {low: 0.0001, high: 0.1, log: true}}",
        )
    require_tuning(config)
    require_optuna()


@task(retries=RETRIES, retry_delay_seconds=BACKOFF, retry_jitter_factor=JITTER, retry_condition_fn=is_transient,
      cache_policy=NO_CACHE, task_run_name="trial {asked.number}")  # fmt: skip
def trial(subject: Subject, asked: Ask, seconds: float | None, trail: Trail) -> State[Trial]:
    """One trial. One that fails or falls behind is a result too, with its reason; one that was made is found."""
    with recording("trial", asked.parameters, trail, f"trial {asked.number}") as record:
        trials = _trials(subject)
        if found := trials.found(asked.number):
            told = told_by(found)
            tags = {"reused_from": found.manifest.provenance.mlflow_run_id or "unknown"}
            record.session.tracker.set_tags(record.run_id, tags)
        else:
            told = _tried(record, subject, asked, seconds, trials)
        _log_trial(record, subject.metric, asked.number, told)
    name = "Cached" if found else {"finished": "Completed", "pruned": "Pruned", "failed": "Fell"}[told.outcome]
    message = told.reason or f"{subject.metric} {told.value:.4f} after {len(told.values)} validations"
    return Completed(data=Trial(number=asked.number, told=told), name=name, message=message)


@task(retries=RETRIES, retry_delay_seconds=BACKOFF, retry_jitter_factor=JITTER, retry_condition_fn=is_transient,
      cache_policy=NO_CACHE)  # fmt: skip
def publish(decision: Decision, best: Best, run_id: str, trail: Trail) -> str:
    """The best configuration as a preset in the bucket; table and picture in Prefect and MLflow. The preset's URI."""
    from modelyard.tune.picture import study_figure, study_png, table

    now = session()
    text = preset_text(best.config, f"Tuned for {trail.model_name}: {decision.why}")
    uri = f"{now.store.root}/presets/{hashlib.sha256(text.encode()).hexdigest()[:16]}.yaml"
    now.store.put_new(uri, text.encode())
    now.tracker.log_text(run_id, text, "best.yaml")
    now.tracker.log_text(run_id, decision.model_dump_json(indent=1), "trials.json")
    now.tracker.log_figure(run_id, study_figure(decision), "trials.png")
    now.tracker.set_tags(run_id, {"modelyard.preset": uri, "modelyard.best_trial": str(decision.winner)})
    create_table_artifact(key="tune-trials", table=table(decision), description=decision.why)
    picture = base64.b64encode(study_png(decision)).decode()
    create_image_artifact(
        key="tune-picture",
        image_url=f"data:image/png;base64,{picture}",
        description="Trials in their order, which keys mattered, and each key against the metric",
    )
    create_markdown_artifact(
        f"`{uri}`\n\n```yaml\n{text}```\n", key="tune-preset", description="The best configuration"
    )
    return uri


# -- details ----------------------------------------------------------------------------------------------


def _new_study(subject: Subject) -> Study:
    config, metric = subject.config, subject.metric
    sampler = TpeSampler(config.tune, config.tuned_whole_numbers, lower_is_better=metric in LOWER_IS_BETTER)
    return Study(config.tune, metric, config.tuned_now, sampler)


def _trials(subject: Subject) -> Trials:
    """What all trials have in common is the preset's own training, and what is tuned in it."""
    config, catalog = subject.config, session().catalog
    parents = Parents.read(catalog, config.train, *_parents(config.train))
    work = training_work(subject.dataset, config.train, parents, beginnings(catalog, config.train, parents, Origin()))
    study = {
        "tune": config.tune.identity(),
        "metric": subject.metric,
        "train": dict(work.config),
        "train_code": work.code_version,
    }
    return Trials(catalog=catalog, study=study, inputs=work.inputs)


def _take_up(study: Study, trials: Trials, num_trials: int) -> list[Ask]:
    """Put what was asked and told before into a study; the trials that were interrupted."""
    interrupted = []
    for number in range(num_trials):
        asked = trials.asked(number)
        if asked is None:
            break
        study.restore(asked)
        if found := trials.found(number):
            study.tell(number, told_by(found))
        else:
            interrupted.append(asked)
    return interrupted


def _tried(record: Record, subject: Subject, asked: Ask, seconds: float | None, trials: Trials) -> Told:
    """Train, and keep what came of it where it would come again."""
    began, judge = time.monotonic(), Judge(asked.bar, lower_is_better=subject.lower_is_better, seconds=seconds)
    product, keeps = None, True
    try:
        product = _trained(record, subject, asked, judge)
        told = _finished(record, product, subject.metric)
    except TrialPruned as behind:
        best = best_of(judge.values, subject.lower_is_better)
        told = Told(outcome="pruned", value=best, values=judge.values, reason=str(behind))
        keeps = not judge.time_is_over
    except TrainingTakenOver:
        raise  # another run makes the same trial: that is for it to say
    except PermanentError as failure:
        told = Told(outcome="failed", values=judge.values, reason=f"{type(failure).__name__}: {failure}")
        keeps = isinstance(failure, TrainingFailed)
    told = told.model_copy(update={"seconds": round(time.monotonic() - began, 3)})
    if keeps:
        told = told_by(trials.commit(asked, told, product.ref if product else None, record.origin))
    return told


def _trained(record: Record, subject: Subject, asked: Ask, judge: Judge) -> Product:
    catalog = record.session.catalog
    config = trial_config(subject.config, asked.parameters)
    dataset = _dataset(record, subject, config)
    init, teacher = _parents(config.train)
    parents = Parents.read(catalog, config.train, init, teacher)
    work = training_work(dataset, config.train, parents, beginnings(catalog, config.train, parents, record.origin))
    for row in validations_so_far(catalog, work, config.train):
        judge.remember(int(row["step"]), row[subject.metric])
    narrator = Narrator(record, config.train)

    def hear(event: RankEvent) -> None:
        narrator(event)
        if event.kind == "validation":
            judge.hear(event.step, event.values[subject.metric])

    try:
        return train_core(
            catalog, dataset, config.train, record.origin, hear, init=init, teacher=teacher, holding=device_slots
        )
    finally:
        narrator.finish()
        record.device_seconds = narrator.device_seconds


def _finished(record: Record, product: Product, metric: str) -> Told:
    """A training's own history: also of validations that other processes heard, before a resume."""
    rows = json.loads(record.session.catalog.read(product.ref, HISTORY_FILE))
    best = product.manifest.content.facts["metrics"]
    return Told(outcome="finished", value=best[metric], loss=best["loss"], values=[row[metric] for row in rows])


def _dataset(record: Record, subject: Subject, config: LifecycleConfig) -> ArtifactRef:
    """The data set with a trial's own transform, made of the same raw files where it differs."""
    if config.preprocess == subject.config.preprocess:
        return subject.dataset
    catalog, key = record.session.catalog, record.session.settings.sensitive_key
    source = catalog.resolve(catalog.manifest(subject.dataset).provenance.input_uris["snapshot"])
    secret = key.get_secret_value().encode() if key else None
    return preprocess_core(catalog, source, config.preprocess, record.origin, secret).ref


def _parents(config: TrainConfig) -> tuple[ArtifactRef | None, ArtifactRef | None]:
    """The model to begin with and the teacher."""
    begins, teaches = config.init.model, config.distill.teacher
    return resolve_model(begins) if begins else None, resolve_model(teaches) if teaches else None


def _log_trial(record: Record, metric: str, number: int, told: Told) -> None:
    tags = {"modelyard.trial": str(number), "modelyard.trial.outcome": told.outcome}
    if told.reason:
        tags["modelyard.fell"] = told.reason[:500]
    record.session.tracker.set_tags(record.run_id, tags)
    points = [Point("trial_seconds", told.seconds), Point("validations", float(len(told.values)))]
    if told.value is not None:
        points.append(Point(f"best_{metric}", told.value))
    record.session.tracker.log_metrics(record.run_id, points)
