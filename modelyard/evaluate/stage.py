"""The evaluate stage as one function: from a package and a data set to a verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from modelyard import gates
from modelyard.artifacts import ArtifactRef, Manifest
from modelyard.catalog import Attempt, Catalog, Origin, Product, Work
from modelyard.code_version import code_version, installed
from modelyard.datasets import Dataset
from modelyard.errors import DataError, DigestMismatch, NotFound, Refused
from modelyard.evaluate.card import about_package, model_card
from modelyard.evaluate.checks import judge
from modelyard.evaluate.config import EvaluateConfig
from modelyard.evaluate.evidence import CANDIDATE, CHAMPION, FLOAT, Cost, Evidence, gather
from modelyard.evaluate.explain_figure import explanation_png
from modelyard.evaluate.files import (
    CARD_FILE,
    EXPLANATIONS_FILE,
    EXPLANATIONS_PICTURE,
    GOLDEN_FILE,
    METRICS_FILE,
    REPORT_FILE,
    VERDICT_FILE,
)
from modelyard.evaluate.judge import Judged
from modelyard.evaluate.judge_items import JudgedItems, gather_items
from modelyard.evaluate.judge_spans import JudgedSpans, gather_spans, is_for_spans
from modelyard.evaluate.judge_vectors import JudgedVectors, gather_vectors, is_for_vectors
from modelyard.evaluate.parents import Parent, find_parent
from modelyard.evaluate.report import report
from modelyard.evaluate.safety import refuse_unsafe_networks
from modelyard.model_package import FLOAT_FORM, ModelPackage, refuse_foreign_files

# The picture of the explanations is part of a verdict, so matplotlib is too.
LIBRARIES = ("captum", "matplotlib", "numpy", "onnxruntime", "pandas", "pyarrow", "scipy", "torch")
OPTIONAL_LIBRARIES = ("tokenizers", "transformers")  # of models that read texts
GOLDEN_DECIMALS = 6
# Tasks whose models are judged in a way of their own.
SORTS: dict[str, type[Judged]] = {
    "embedding": JudgedVectors,
    "retrieval": JudgedItems,
    "token_classification": JudgedSpans,
}


def evaluate(
    catalog: Catalog,
    compressed_ref: ArtifactRef,
    dataset_ref: ArtifactRef,
    champion_ref: ArtifactRef | None,
    config: EvaluateConfig,
    origin: Origin,
) -> Product:
    """Judge a candidate on the test split.

    Args:
        catalog: holds the packages and the data set; takes the verdict.
        compressed_ref: the candidate, a ``compressed`` artifact; or a ``model`` for language, which
            `modelyard.evaluate.language` judges.
        dataset_ref: the ``dataset`` whose test split is read, once.
        champion_ref: what serves now, a ``compressed`` artifact judged with its own transform and default form;
            None where nothing serves yet.
        config: see `EvaluateConfig`.
        origin: who asks.

    Returns:
        A ``verdict`` artifact, whether the candidate passed or not (`refusal` tells):

        - ``verdict.json``: every check and who was judged; the gated metric with its bootstrap interval, the paired
          comparison with the champion, slices, disturbances, notes, and who overrode it, if somebody did;
        - ``metrics.json``: role -> for a classifier accuracy, macro_f1, loss (nats), roc_auc, calibration_error, the
          calibration curve, per class precision, recall, f1 and support, and the confusion matrix (row: truth); for a
          regression r2, mae, rmse and loss; for spans of texts those of `modelyard.span_metrics`, per label and the worst
          texts as ``entities``; for vectors of texts the scores of `modelyard.evaluate.vectors`; and
          ``intervals`` (name -> low, high) of those that are no counts;
        - ``explanations.json`` and ``explanations.png``: which columns the answers rest on, as
          `modelyard.evaluate.explain` says; absent where nothing was looked at;
        - ``report.html``: all of it as one page for people; ``model-card.md``: the short form that travels with a model;
        - ``golden.json``: ``rows`` (raw feature values in the transform's column order) and the ``outputs`` (raw)
          that ``form`` gave them, computed as one batch in that order, with the ``tolerance`` allowed on each value.

    Raises:
        DataError: the data set or the champion has another target or other columns, or a package holds a file that is
            not plain data, or a network that is not whole or not its own.
        NotFound: the candidate has no such form.
    """
    if compressed_ref.kind == "model":
        from modelyard.evaluate.language import evaluate_language  # torch, and models that nobody compresses

        return evaluate_language(catalog, compressed_ref, dataset_ref, champion_ref, config, origin)
    inputs = {"candidate": compressed_ref, "dataset": dataset_ref}
    work = Work(
        kind="verdict",
        config=config.model_dump(mode="json"),
        inputs=inputs | ({"champion": champion_ref} if champion_ref else {}),
        code_version=code_version("modelyard.evaluate", [*LIBRARIES, *installed(OPTIONAL_LIBRARIES)]),
    )
    return catalog.produce(work, partial(_build, catalog, work, config), origin)


def refusal(manifest: Manifest) -> Refused | None:
    """The exception that a verdict amounts to; None where the candidate passed, or a person let it pass."""
    facts = manifest.content.facts
    if facts["passed"]:
        return None
    return Refused(facts["subject"], facts["reasons"], facts["checks"])


def _build(catalog: Catalog, work: Work, config: EvaluateConfig, attempt: Attempt) -> None:
    dataset = Dataset.fetch(catalog, work.inputs["dataset"], attempt.scratch / "dataset", ["test"])
    judged, problem = _open_all(catalog, work, config, dataset, attempt.scratch)
    evidence = _evidence(catalog, work, dataset, judged, config, attempt.scratch)
    evidence.champion_problem = problem
    package = judged[CANDIDATE].package
    evidence.costs = {role: _cost(catalog, work, role, one, attempt.scratch) for role, one in judged.items()}
    verdict = judge(str(work.inputs["candidate"]), evidence, config)
    document = _verdict_json(verdict, evidence, work, config)
    metrics = {role: _metrics_json(role, evidence) for role in judged}
    attempt.add_json(VERDICT_FILE, document)
    attempt.add_json(METRICS_FILE, metrics)
    attempt.add_json(GOLDEN_FILE, _golden_json(judged[CANDIDATE], evidence.golden, config))
    attempt.add_bytes(
        REPORT_FILE, report(document, metrics, evidence.explained, _add_picture(attempt, evidence)).encode()
    )
    attempt.add_bytes(
        CARD_FILE, model_card(document, metrics, evidence.explained, about_package(package), config).encode()
    )
    attempt.facts.update(
        subject=verdict.subject,
        passed=verdict.passed or bool(document["override"]),
        reasons=verdict.reasons,
        checks=verdict.table(),
        form=package.form,
        metrics={role: one.headline() for role, one in judged.items()},
        interval=document["scores"].get(CANDIDATE),
        override=document["override"],
    )


def _evidence(
    catalog: Catalog, work: Work, dataset: Dataset, judged: dict[str, Judged], config: EvaluateConfig, scratch: Path
) -> Evidence:
    items = {role: one for role, one in judged.items() if isinstance(one, JudgedItems)}
    if items:
        return gather_items(catalog, work.inputs["dataset"], dataset, items, config)
    vectors = {role: one for role, one in judged.items() if isinstance(one, JudgedVectors)}
    if is_for_vectors(dataset.target):
        return gather_vectors(dataset, vectors, config)
    if is_for_spans(dataset.target):
        return gather_spans(
            dataset, {role: one for role, one in judged.items() if isinstance(one, JudgedSpans)}, config
        )
    return gather(dataset, judged, _parents(catalog, work, judged, scratch), config)


def _add_picture(attempt: Attempt, evidence: Evidence) -> bytes | None:
    """The explanations as files of the verdict; returns the picture."""
    if evidence.explained is None:
        return None
    attempt.add_json(EXPLANATIONS_FILE, evidence.explained)
    if "texts" in evidence.explained:
        return None  # words are shown as words
    picture = explanation_png(evidence.explained)
    attempt.add_bytes(EXPLANATIONS_PICTURE, picture)
    return picture


def _open_all(
    catalog: Catalog, work: Work, config: EvaluateConfig, dataset: Dataset, scratch: Path
) -> tuple[dict[str, Judged], str]:
    """Every model under judgement, by role; and why the champion is not among them, where it cannot be judged."""
    opened: dict[str, Judged] = {}
    for role, source, form in [
        (CANDIDATE, "candidate", config.form),
        (FLOAT, "candidate", FLOAT_FORM),
        (CHAMPION, "champion", None),
    ]:
        if source not in work.inputs:
            continue
        try:
            opened[role] = _opened(catalog, work.inputs[source], role, form, config, scratch / source)
            opened[role].check_fits(dataset.target, dataset.transform.columns)
        except (DataError, DigestMismatch, NotFound) as failure:
            if role != CHAMPION:
                raise
            opened.pop(CHAMPION, None)
            return opened, str(failure)
    return opened, ""


def _opened(
    catalog: Catalog, ref: ArtifactRef, role: str, form: str | None, config: EvaluateConfig, folder: Path
) -> Judged:
    if not folder.exists():
        refuse_foreign_files(catalog.manifest(ref).content.files)
        catalog.fetch(ref, folder)
        refuse_unsafe_networks(folder)
    package = ModelPackage.open(folder, form, config.threads, with_items=True)
    return SORTS.get(package.spec.target.task, Judged)(role, package)


def _cost(catalog: Catalog, work: Work, role: str, one: Judged, scratch: Path) -> Cost:
    source, form = CHAMPION if role == CHAMPION else CANDIDATE, one.package.form
    latencies = catalog.manifest(work.inputs[source]).provenance.measurements.get("latency_ms", {})
    return Cost(
        size_bytes=one.package.spec.forms[form].size_bytes(scratch / source),
        latency_ms=float(latencies.get(form, {}).get("1", math.nan)),
    )


def _parents(catalog: Catalog, work: Work, judged: Mapping[str, Judged], scratch: Path) -> dict[str, Parent]:
    """The trained network behind every model under judgement; the candidate's float form shares the candidate's."""
    found = {}
    for role in (CANDIDATE, CHAMPION):
        if role in judged:
            width = judged[role].package.transform.width
            found[role] = find_parent(catalog, work.inputs[role], width, scratch / "parents" / role)
    return found | {FLOAT: found[CANDIDATE]}


def _verdict_json(verdict: gates.Verdict, evidence: Evidence, work: Work, config: EvaluateConfig) -> dict[str, Any]:
    comparison = evidence.comparison
    override = {"by": config.override_by, "reason": config.override_reason} if config.override_by else None
    return {
        **verdict.model_dump(mode="json"),
        "passed": verdict.passed,
        "override": override,
        "reasons": verdict.reasons,
        "metric": config.metric,
        "form": evidence.candidate.package.form,
        "scores": {role: score.model_dump() for role, score in evidence.scores.items() if score.is_finite},
        "comparison": comparison.model_dump() if comparison and comparison.difference.is_finite else None,
        "slices": [
            {**one.model_dump(), "champion": _plain(one.champion), "is_decisive": one.is_decisive}
            for one in evidence.slices
            if one.score.is_finite
        ],
        "disturbed": {kind: _plain_all(scores) for kind, scores in evidence.disturbed.items()},
        "attacked": {kind: _plain_all(scores) for kind, scores in evidence.attacked.items()},
        "attack_strength": config.attack_strength,
        "sizes": {role: int(cost.size_bytes) for role, cost in evidence.costs.items()},
        "notes": evidence.notes,
        "inputs": {role: ref.digest for role, ref in work.inputs.items()},
    }


def _plain_all(scores: Mapping[str, float]) -> dict[str, float | None]:
    return {role: _plain(score) for role, score in scores.items()}


def _plain(score: float | None) -> float | None:
    """JSON has no NaN: what could not be computed is null."""
    return score if score is not None and math.isfinite(score) else None


def _metrics_json(role: str, evidence: Evidence) -> dict[str, Any]:
    found = evidence.intervals[role]
    intervals = {name: {"low": one.low, "high": one.high} for name, one in found.items() if one.is_finite}
    return {**evidence.judged[role].details(), "intervals": intervals}


def _golden_json(candidate: Judged, rows: np.ndarray, config: EvaluateConfig) -> dict[str, Any]:
    outputs = np.nan_to_num(candidate.package.outputs(rows).astype(np.float64))
    rounding = 10.0**-GOLDEN_DECIMALS
    return {
        "rows": rows.tolist(),
        "outputs": outputs.round(GOLDEN_DECIMALS).tolist(),
        "tolerance": max(float(config.golden_tolerance * np.abs(outputs).max()), rounding),
        "form": candidate.package.form,
    }
