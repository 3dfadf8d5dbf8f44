"""Preprocessing as tasks."""

from __future__ import annotations

import json

from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.states import State

from modelyard.artifacts import ArtifactRef
from modelyard.datasets import REPORT_FILE
from modelyard.preprocess import PreprocessConfig
from modelyard.preprocess import preprocess as preprocess_core
from modelyard.preprocess import snapshot as snapshot_core
from modelyard.preprocess.history import difference, remember
from modelyard.preprocess.page import report_page
from tasks.partitions import ShownShares
from tasks.policy import BACKOFF, JITTER, RETRIES, is_transient
from tasks.recording import Record, Trail, as_state, recording
from tasks.results import StageResult

SHOWN_ROWS = 200  # of a table in Prefect


@task(retries=RETRIES, retry_delay_seconds=BACKOFF, retry_jitter_factor=JITTER, retry_condition_fn=is_transient,
      cache_policy=NO_CACHE)  # fmt: skip
def snapshot(dataset_uri: str, trail: Trail) -> State[StageResult]:
    """Write down exactly which bytes a data set consists of."""
    with recording("snapshot", {"dataset_uri": dataset_uri}, trail) as record:
        product = snapshot_core(record.session.catalog, dataset_uri, record.origin)
        facts = product.manifest.content.facts
        result = record.conclude(product, f"{facts['files']} files, {facts['bytes'] / 1e6:.1f} MB")
    return as_state(result)


@task(retries=RETRIES, retry_delay_seconds=BACKOFF, retry_jitter_factor=JITTER, retry_condition_fn=is_transient,
      cache_policy=NO_CACHE)  # fmt: skip
def preprocess(source: ArtifactRef, config: PreprocessConfig, dataset_uri: str, trail: Trail) -> State[StageResult]:
    """Clean, split and write the shards and the fitted transform."""
    with recording("preprocess", config.model_dump(mode="json"), trail) as record:
        key = record.session.settings.sensitive_key
        secret = key.get_secret_value().encode() if key else None
        product = preprocess_core(record.session.catalog, source, config, record.origin, secret, ShownShares())
        facts = product.manifest.content.facts
        record.session.tracker.log_dataset(
            record.run_id, name=trail.model_name, uri=dataset_uri, digest=source.digest, profile=str(facts["splits"])
        )
        numbers = {f"rows_{name}": facts[name] for name in ("read", "kept", "rejected", "duplicates")}
        numbers |= {f"rows_{name}": count for name, count in facts["splits"].items()}
        headline = f"{facts['kept']} of {facts['read']} rows kept"
        result = record.conclude(product, headline, numbers)
        _publish(record, product.ref, config, dataset_uri)
    return as_state(result)


def _publish(record: Record, dataset: ArtifactRef, config: PreprocessConfig, dataset_uri: str) -> None:
    """The report as a page in MLflow; rows, rejects, columns and what changed as tables in Prefect."""
    catalog = record.session.catalog
    report = json.loads(catalog.read(dataset, REPORT_FILE))
    changes = difference(catalog, dataset, remember(catalog, dataset_uri, config.target, dataset))
    page = report_page(f"Data of {dataset_uri}", report, changes)
    record.session.tracker.log_text(record.run_id, page, "data.html")
    counts = report["rows"] | {split: told["rows"] for split, told in report["splits"].items()}
    tables = {
        "rows": [{"rows": name, "count": count} for name, count in counts.items()],
        "rejects": report["rejected"][:SHOWN_ROWS],
        "columns": [
            {"column": name, **{fact: told.get(fact, "") for fact in ("kind", "rows", "nulls", "low", "high")}}
            for name, told in list(report["profile"]["after"].items())[:SHOWN_ROWS]
        ],
        "changes": changes[:SHOWN_ROWS],
    }
    descriptions = {
        "rows": f"Where the rows of {dataset_uri} went",
        "rejects": "Why rows were refused",
        "columns": "What is in the columns of the data set",
        "changes": "Since the data set before",
    }
    for name, table in tables.items():
        if table:
            create_table_artifact(key=f"preprocess-{name}", table=table, description=descriptions[name])
