"""Compression as a task."""

from __future__ import annotations

from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.states import State

from modelyard.artifacts import ArtifactRef
from modelyard.compress import CompressConfig
from modelyard.compress import compress as compress_core
from tasks.policy import BACKOFF, JITTER, RETRIES, is_transient
from tasks.recording import Trail, as_state, recording
from tasks.results import StageResult


@task(retries=RETRIES, retry_delay_seconds=BACKOFF, retry_jitter_factor=JITTER, retry_condition_fn=is_transient,
      cache_policy=NO_CACHE)  # fmt: skip
def compress(model: ArtifactRef, dataset: ArtifactRef, config: CompressConfig, trail: Trail) -> State[StageResult]:
    """Convert to the serving runtime, make it small, measure both."""
    with recording("compress", config.model_dump(mode="json"), trail) as record:
        product = compress_core(record.session.catalog, model, dataset, config, record.origin)
        table = _forms_table(product.manifest.content.facts, product.manifest.provenance.measurements)
        numbers = {f"{row['form']}.{name}": float(row[name]) for row in table for name in row if name != "form"}
        sizes = {row["form"]: row["size_bytes"] for row in table}
        form = config.default_form
        headline = f"{form} is {sizes[form] / sizes['float']:.2f} of the float size"
        result = record.conclude(product, headline, numbers)
    create_table_artifact(key="compress-forms", table=table, description="Size and latency of each form, one thread")
    return as_state(result)


def _forms_table(facts: dict, measurements: dict) -> list[dict]:
    """One row a form: size, and median latency in milliseconds at each measured batch size."""
    return [
        {
            "form": form,
            "size_bytes": size,
            **{f"batch_{batch}_ms": value for batch, value in measurements["latency_ms"][form].items()},
        }
        for form, size in facts["size_bytes"].items()
    ]
