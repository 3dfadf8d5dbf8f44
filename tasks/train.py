"""Training as a task: the one writer of progress, logs and metrics for all ranks."""

from __future__ import annotations

import json
import time
from uuid import UUID

from prefect import get_run_logger, task
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.states import State

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Product
from modelyard.errors import TrainingFailed
from modelyard.train import HISTORY_FILE, SAMPLES_FILE, RankEvent, TrainConfig, is_rank_figure
from modelyard.train import train as train_core
from modelyard.train.plots import Curves, training_figure
from tasks.devices import device_slots
from tasks.policy import BACKOFF, JITTER, RETRIES, is_transient
from tasks.recording import Record, Trail, as_state, recording
from tasks.results import StageResult

PROGRESS_SECONDS = 1.0
CURVES_FILE = "training.png"
WHERE = {"step", "epoch"}  # said in words


class Narrator:
    """Turns the ranks' events into a progress bar and log lines in Prefect, and into metrics in MLflow.

    In MLflow ``train_loss``, ``accuracy`` and the like are validations; ``progress/...`` is what steps report on the
    way, ``system/rank_0/...`` what each rank takes of its machine. All are drawn over optimizer steps.
    """

    def __init__(self, record: Record, config: TrainConfig) -> None:
        self._record, self._config = record, config
        self._log = get_run_logger()
        self._metrics = record.session.tracker.buffered_metrics(record.run_id)
        self._progress: UUID | None = None
        self._shown_at = 0.0
        self._last = "Nothing was left to do"
        self._checkpoints = ""
        self._began = time.time()
        self._ranks = 1
        self.curves = Curves()

    def __call__(self, event: RankEvent) -> None:
        self.curves.add(event)
        if event.kind == "started":
            self._start(event)
        elif event.kind == "progress" and event.values:
            self._metrics.add({_metric(name): value for name, value in event.values.items()}, event.step)
            self._show(event, f"Step {event.step}")
        elif event.kind == "validation":
            self._metrics.add(event.values, event.step)
            self._show(event, f"Epoch {event.values['epoch']:.4g} of at most {self._config.max_epochs}")
        elif event.kind == "checkpoint":
            self._say_where(event.message)
        elif event.kind == "warning":
            self._log.warning("%s", event.message)
        elif event.kind == "failed":
            self._log.warning("rank %s: %s: %s", event.rank, event.error, event.message)

    @property
    def device_seconds(self) -> float:
        """Seconds since the ranks were up, times the ranks."""
        return (time.time() - self._began) * self._ranks

    def finish(self) -> None:
        self._metrics.flush()
        if self._progress:
            update_progress_artifact(self._progress, progress=100.0, description=self._last)

    def _start(self, event: RankEvent) -> None:
        self._record.session.tracker.set_tags(
            self._record.run_id, {f"modelyard.{name}": told for name, told in event.about.items()}
        )
        self._ranks = int(event.values["world_size"])
        epochs, steps = int(event.values["resumed_epochs"]), int(event.values["resumed_steps"])
        self._log.info("%s%s", event.message, f", going on after epoch {epochs}, step {steps}" if steps else "")
        if self._progress is None:
            self._progress = create_progress_artifact(  # ty: ignore[invalid-assignment]
                progress=self._percent(event), key="training", description="Epochs, of at most as many"
            )

    def _say_where(self, checkpoint: str) -> None:
        """Where checkpoints lie, once: another training may begin with one (`train.init.checkpoint`)."""
        folder = checkpoint.rpartition("/")[0]
        if folder != self._checkpoints:
            self._checkpoints = folder
            self._record.session.tracker.set_tags(self._record.run_id, {"modelyard.checkpoints": folder})
            self._log.info("Checkpoints: %s", folder)

    def _show(self, event: RankEvent, where: str) -> None:
        numbers = ", ".join(f"{name} {_short(value)}" for name, value in event.values.items() if _is_said(name))
        self._last = f"{where}: {numbers}"
        if time.monotonic() - self._shown_at < PROGRESS_SECONDS or self._progress is None:
            return
        self._shown_at = time.monotonic()
        self._log.info("%s", self._last)
        update_progress_artifact(self._progress, progress=self._percent(event), description=self._last)

    def _percent(self, event: RankEvent) -> float:
        """How far towards the nearer of the two limits."""
        of_epochs = event.epoch / self._config.max_epochs
        of_steps = event.step / self._config.stop.max_steps if self._config.stop.max_steps else 0.0
        return min(100.0 * max(of_epochs, of_steps), 100.0)


def _metric(name: str) -> str:
    """A rank's own figures are the machine's, beside those of the process that records them."""
    return f"{'system' if is_rank_figure(name) else 'progress'}/{name}"


def _is_said(name: str) -> bool:
    return name not in WHERE and not is_rank_figure(name)


def _short(value: float) -> str:
    """Four digits that matter, never an exponent where a person can read the number."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


@task(retries=RETRIES, retry_delay_seconds=BACKOFF, retry_jitter_factor=JITTER, retry_condition_fn=is_transient,
      cache_policy=NO_CACHE)  # fmt: skip
def train(
    dataset: ArtifactRef,
    config: TrainConfig,
    trail: Trail,
    init: ArtifactRef | None = None,
    teacher: ArtifactRef | None = None,
) -> State[StageResult]:
    """Train on a data set, with one process a rank."""
    with recording("train", config.model_dump(mode="json"), trail) as record:
        narrator = Narrator(record, config)
        tracker = record.session.tracker
        tracker.log_dataset(record.run_id, name=trail.model_name, uri=dataset.uri, digest=dataset.digest)
        with tracker.system_metrics(record.run_id):
            try:
                product = train_core(
                    record.session.catalog,
                    dataset,
                    config,
                    record.origin,
                    narrator,
                    init=init,
                    teacher=teacher,
                    holding=device_slots,
                )
            except TrainingFailed as failure:
                _show_curves(record, narrator.curves, type(failure).__name__)
                narrator.finish()
                raise
        narrator.finish()
        if not product.reused:
            if product.manifest.content.facts["metrics"]:
                _show_result(record, narrator.curves, product)
            record.device_seconds = narrator.device_seconds
        _show_samples(record, product)
        facts = product.manifest.content.facts
        tracker.set_tags(record.run_id, {"modelyard.stopped_by": facts["stopped_by"]})
        if not facts["metrics"]:
            numbers = {"parameters": facts["parameters"]}
            return as_state(record.conclude(product, f"taken as it comes, {facts['parameters']:,} weights", numbers))
        # Under names of their own: `accuracy` is the curve that was reported while it trained.
        best = {f"best_{name}": value for name, value in facts["metrics"].items()}
        numbers = {**best, **{name: facts[name] for name in ("epochs", "steps", "parameters")}}
        value = facts["metrics"][facts["headline"]]
        headline = f"{facts['headline']} {value:.4f} after {facts['epochs']:.4g} epochs ({facts['stopped_by']})"
        return as_state(record.conclude(product, headline, numbers))


def _show_samples(record: Record, product: Product) -> None:
    """What a language model makes of a few beginnings, for people to read."""
    if SAMPLES_FILE not in product.manifest.content.files:
        return
    samples = record.session.catalog.read(product.ref, SAMPLES_FILE).decode()
    record.session.tracker.log_text(record.run_id, samples, SAMPLES_FILE)
    create_markdown_artifact(samples, key="training-samples", description="Texts continued by the trained model")


def _show_curves(record: Record, curves: Curves, title: str) -> None:
    """Losses and learning rate as a picture in MLflow, with a link in Prefect."""
    if not curves:
        return
    tracker = record.session.tracker
    tracker.log_figure(record.run_id, training_figure(curves, title), CURVES_FILE)
    create_link_artifact(
        key="training-curves",
        link=tracker.artifact_url(record.run_id, CURVES_FILE),
        link_text="Loss and learning rate",
        description="Training and validation loss, learning rate, in MLflow",
    )


def _show_result(record: Record, curves: Curves, product: Product) -> None:
    """The picture of a finished training, with the validations of all the runs that it took."""
    facts, catalog = product.manifest.content.facts, record.session.catalog
    curves.validations = [
        (int(row["step"]), row["loss"]) for row in json.loads(catalog.read(product.ref, HISTORY_FILE))
    ]
    score = facts["metrics"][facts["headline"]]
    _show_curves(record, curves, f"{facts['headline']} {score:.4f} after {facts['steps']:,} steps")
