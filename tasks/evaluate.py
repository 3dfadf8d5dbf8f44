"""Evaluation as tasks: who is champion, and is the candidate good enough."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from prefect import task
from prefect.artifacts import create_link_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.states import Failed, State

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Product
from modelyard.errors import Refused
from modelyard.evaluate import (
    CARD_FILE,
    EXPLANATIONS_FILE,
    EXPLANATIONS_PICTURE,
    REPORT_FILE,
    EvaluateConfig,
    confusion_figure,
    explanation_figure,
    refusal,
)
from modelyard.evaluate import evaluate as evaluate_core
from tasks.policy import BACKOFF, JITTER, RETRIES, is_transient
from tasks.recording import Record, Trail, as_state, recording
from tasks.results import StageRefused, StageResult
from tasks.session import session


@task(retries=RETRIES, retry_delay_seconds=BACKOFF, retry_jitter_factor=JITTER, retry_condition_fn=is_transient,
      cache_policy=NO_CACHE)  # fmt: skip
def find_champion(model_name: str, candidate: ArtifactRef) -> ArtifactRef | None:
    """What the candidate has to be held against; None for the first of its name.

    A candidate that is champion already is held against whatever it was held against when it became so: comparing it
    with itself would prove nothing, and would make an unchanged run evaluate again.
    """
    now = session()
    champion = now.tracker.version_by_alias(model_name, "champion")
    if champion is None:
        return None
    if champion.artifact.digest != candidate.digest:
        return champion.artifact
    judged = now.catalog.manifest(champion.verdict)
    if "champion" not in judged.content.inputs:
        return None
    return now.catalog.resolve(judged.provenance.input_uris["champion"])


@task(retries=RETRIES, retry_delay_seconds=BACKOFF, retry_jitter_factor=JITTER, retry_condition_fn=is_transient,
      cache_policy=NO_CACHE)  # fmt: skip
def evaluate(
    candidate: ArtifactRef,
    dataset: ArtifactRef,
    champion: ArtifactRef | None,
    config: EvaluateConfig,
    trail: Trail,
) -> State[StageResult]:
    """Judge a candidate on the test split. A refusal is the task's state, with its reasons, not a stack trace."""
    with recording("evaluate", config.model_dump(mode="json"), trail) as record:
        product = evaluate_core(record.session.catalog, candidate, dataset, champion, config, record.origin)
        scores = product.manifest.content.facts["metrics"]
        numbers = {f"{model}.{name}": value for model, row in scores.items() for name, value in row.items()}
        refused = refusal(product.manifest)
        result = record.conclude(product, _headline(product, config.metric, refused), numbers)
        _show_details(record, product, refused)
    if refused:
        return Failed(name="Refused", message=str(refused), data=StageRefused(refused, result))
    return as_state(result)


def _headline(product: Product, metric: str, refused: Refused | None) -> str:
    """``accuracy 0.9667 (0.9444 to 0.9852), passed``; of answers that are no numbers ``r2 unknown, refused``."""
    facts = product.manifest.content.facts
    score, interval = facts["metrics"]["candidate"].get(metric), facts["interval"]
    found = "unknown" if score is None else f"{score:.4f}"
    sure = f" ({interval['low']:.4f} to {interval['high']:.4f})" if interval else ""
    by = facts["override"]["by"] if facts["override"] and facts["reasons"] else ""
    outcome = "refused" if refused else f"let through by {by}" if by else "passed"
    return f"{metric} {found}{sure}, {outcome}"


def _show_details(record: Record, product: Product, refused: Refused | None) -> None:
    """The report as a page in MLflow with a link in Prefect, the pictures, and the table of checks."""
    catalog, ref = record.session.catalog, product.ref
    candidate = json.loads(catalog.read(ref, "metrics.json"))["candidate"]
    checks = json.loads(catalog.read(ref, "verdict.json"))["checks"]
    tracker = record.session.tracker
    for file in (name for name in (REPORT_FILE, CARD_FILE) if name in product.manifest.content.files):
        tracker.log_text(record.run_id, catalog.read(ref, file).decode(), file)
    create_link_artifact(
        key="evaluate-report",
        link=tracker.artifact_url(record.run_id, REPORT_FILE),
        link_text="Report of the verdict",
        description="Checks, intervals, slices, disturbances, attacks, explanations, confusion and calibration, in MLflow",
    )
    if EXPLANATIONS_PICTURE in product.manifest.content.files:
        explained = json.loads(catalog.read(ref, EXPLANATIONS_FILE))
        tracker.log_figure(record.run_id, explanation_figure(explained), EXPLANATIONS_PICTURE)
    if "confusion" in candidate:
        _show_confusion(record, candidate["classes"], candidate["confusion"])
    table = [{"check": row["name"], **_shown(row)} for row in checks]
    outcome = "was refused" if refused else "passed"
    create_table_artifact(key="evaluate-checks", table=table, description=f"The candidate {outcome}")


def _shown(check: dict[str, Any]) -> dict[str, object]:
    """Value and limit of a check with four decimals; a dash where one could not be computed."""
    numbers = {key: "-" if check[key] is None else round(check[key], 4) for key in ("value", "limit")}
    return {**numbers, "passed": check["passed"]}


def _show_confusion(record: Record, classes: list[str | int], confusion: list[list[int]]) -> None:
    record.session.tracker.log_figure(record.run_id, confusion_figure(np.array(confusion), classes), "confusion.png")
    rows = [
        {"true": str(label), **{f"as {other}": count for other, count in zip(classes, row, strict=True)}}
        for label, row in zip(classes, confusion, strict=True)
    ]
    create_table_artifact(
        key="evaluate-confusion", table=rows, description="Candidate on the test split: rows are the truth"
    )
