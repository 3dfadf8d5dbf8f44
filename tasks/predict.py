"""Batch prediction as a task: retried, it goes on after the last shard that was done."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from prefect import task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed, State

from modelyard.artifacts import ArtifactRef
from modelyard.predict import PredictConfig
from modelyard.predict import predict as predict_core
from modelyard.tracking import Point
from tasks.policy import BACKOFF, JITTER, RETRIES, is_transient
from tasks.recording import Trail, recording
from tasks.results import PredictResult

if TYPE_CHECKING:
    from uuid import UUID


@task(retries=RETRIES, retry_delay_seconds=BACKOFF, retry_jitter_factor=JITTER, retry_condition_fn=is_transient,
      cache_policy=NO_CACHE)  # fmt: skip
def predict(
    package: ArtifactRef, source: ArtifactRef | str, config: PredictConfig, trail: Trail
) -> State[PredictResult]:
    """Answer every row of a data set's split, or of raw files."""
    progress = create_progress_artifact(progress=0.0, key="predict", description="Shards that are answered")

    def show(done: int, total: int) -> None:
        update_progress_artifact(cast("UUID", progress), progress=100 * done / total)

    with recording("predict", config.model_dump(mode="json"), trail) as record:
        predictions = predict_core(
            record.session.catalog,
            package,
            source,
            config,
            record.origin,
            model_name=trail.model_name,
            on_part=show,
        )
        tracker = record.session.tracker
        tracker.set_tags(
            record.run_id, {"modelyard.predictions": predictions.uri, "modelyard.input.package": package.digest}
        )
        tracker.log_metrics(record.run_id, [Point("rows", float(predictions.num_rows))])
        result = PredictResult(
            predictions=predictions,
            headline=f"{predictions.num_rows} rows answered in {predictions.num_parts} files",
            mlflow_run_id=record.run_id,
            usage=record.usage(),
        )
    name = "Cached" if predictions.num_reused == predictions.num_parts else "Completed"
    return Completed(data=result, name=name, message=result.headline)
