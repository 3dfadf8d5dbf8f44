"""Training as a task: the one writer of progress, logs and metrics for all ranks."""

from __future__ import annotations

import time
from uuid import UUID

from prefect import get_run_logger, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.states import State

from modelyard.artifacts import ArtifactRef
from modelyard.train import RankEvent, TrainConfig
from modelyard.train import train as train_core
from tasks.policy import BACKOFF, JITTER, RETRIES, is_transient
from tasks.recording import Record, Trail, as_state, recording
from tasks.results import StageResult

# Held by a concurrency limit of the same tag: two trainings on one machine would only slow each other.
TRAINING_TAG = "modelyard-training"
PROGRESS_SECONDS = 1.0


class Narrator:
    """Turns the ranks' events into a progress bar and log lines in Prefect, and into metrics in MLflow."""

    def __init__(self, record: Record, max_epochs: int) -> None:
        self._max_epochs = max_epochs
        self._log = get_run_logger()
        self._metrics = record.session.tracker.buffered_metrics(record.run_id)
        self._progress: UUID | None = None
        self._shown_at = 0.0
        self._last = "Nothing was left to do"
        self._began = time.time()
        self._ranks = 1

    def __call__(self, event: RankEvent) -> None:
        if event.kind == "started":
            self._start(event)
        elif event.kind == "epoch":
            self._metrics.add(event.values, event.epoch)
            self._show(event)
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
        self._ranks = int(event.values["world_size"])
        resumed = int(event.values["resumed_epochs"])
        self._log.info("%s%s", event.message, f", going on after epoch {resumed}" if resumed else "")
        if self._progress is None:
            self._progress = create_progress_artifact(  # ty: ignore[invalid-assignment]
                progress=100.0 * resumed / self._max_epochs, key="training", description="Epochs, of at most as many"
            )

    def _show(self, event: RankEvent) -> None:
        numbers = ", ".join(f"{name} {_short(value)}" for name, value in event.values.items())
        self._last = f"Epoch {event.epoch} of at most {self._max_epochs}: {numbers}"
        if time.monotonic() - self._shown_at < PROGRESS_SECONDS or self._progress is None:
            return
        self._shown_at = time.monotonic()
        self._log.info("%s", self._last)
        update_progress_artifact(
            self._progress,
            progress=100.0 * event.epoch / self._max_epochs,
            description=self._last,
        )


def _short(value: float) -> str:
    """Four digits that matter, never an exponent where a person can read the number."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


@task(retries=RETRIES, retry_delay_seconds=BACKOFF, retry_jitter_factor=JITTER, retry_condition_fn=is_transient,
      cache_policy=NO_CACHE, tags={TRAINING_TAG})  # fmt: skip
def train(dataset: ArtifactRef, config: TrainConfig, trail: Trail) -> State[StageResult]:
    """Train on a data set, with one process a rank."""
    with recording("train", config.model_dump(mode="json"), trail) as record:
        narrator = Narrator(record, config.max_epochs)
        with record.session.tracker.system_metrics(record.run_id):
            product = train_core(record.session.catalog, dataset, config, record.origin, narrator)
        narrator.finish()
        if not product.reused:
            record.device_seconds = narrator.device_seconds
        facts = product.manifest.content.facts
        # Under names of their own: `accuracy` is the curve over epochs that was reported while it trained.
        best = {f"best_{name}": value for name, value in facts["metrics"].items()}
        numbers = {**best, "epochs": facts["epochs"], "parameters": facts["parameters"]}
        headline = f"accuracy {facts['metrics']['accuracy']:.4f} after {facts['epochs']} epochs"
        return as_state(record.conclude(product, headline, numbers))
