"""The evaluate stage as one function: from a package and a data set to a verdict."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from modelyard import gates
from modelyard.artifacts import ArtifactRef, Manifest
from modelyard.catalog import Attempt, Catalog, Origin, Product, Work
from modelyard.code_version import code_version
from modelyard.datasets import Dataset
from modelyard.errors import DataError, Refused
from modelyard.evaluate.config import EvaluateConfig
from modelyard.evaluate.judge import Judged
from modelyard.model_package import FLOAT_FORM, ModelPackage
from modelyard.task_kinds import task_kind

LIBRARIES = ("numpy", "onnxruntime", "pandas", "pyarrow")
VERDICT_FILE = "verdict.json"
METRICS_FILE = "metrics.json"
GOLDEN_FILE = "golden.json"
CANDIDATE, FLOAT, CHAMPION = "candidate", "float", "champion"
GOLDEN_DECIMALS = 6


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
        compressed_ref: the candidate, a ``compressed`` artifact.
        dataset_ref: the ``dataset`` whose test split is read, once.
        champion_ref: what serves now, a ``compressed`` artifact judged with its own transform and default form;
            None where nothing serves yet.
        config: see `EvaluateConfig`.
        origin: who asks.

    Returns:
        A ``verdict`` artifact, whether the candidate passed or not (`refusal` tells):

        - ``verdict.json``: every check, and who was judged;
        - ``metrics.json``: role -> accuracy, macro_f1, loss (nats), per class precision, recall, f1 and support, and
          the confusion matrix (row: truth);
        - ``golden.json``: ``rows`` (raw feature values in the transform's column order) and the ``outputs`` (raw)
          that ``form`` gave them, computed as one batch in that order, with the ``tolerance`` allowed on each value.

    Raises:
        DataError: the data set or the champion has another target or other columns.
        NotFound: the candidate has no such form.
    """
    inputs = {"candidate": compressed_ref, "dataset": dataset_ref}
    work = Work(
        kind="verdict",
        config=config.model_dump(mode="json"),
        inputs=inputs | ({"champion": champion_ref} if champion_ref else {}),
        code_version=code_version("modelyard.evaluate", LIBRARIES),
    )
    return catalog.produce(work, partial(_build, catalog, work, config), origin)


def refusal(manifest: Manifest) -> Refused | None:
    """The exception that a verdict amounts to; None where the candidate passed."""
    facts = manifest.content.facts
    if facts["passed"]:
        return None
    return Refused(facts["subject"], facts["reasons"], facts["checks"])


def _build(catalog: Catalog, work: Work, config: EvaluateConfig, attempt: Attempt) -> None:
    dataset = Dataset.fetch(catalog, work.inputs["dataset"], attempt.scratch / "dataset", ["test"])
    judged = _open_all(catalog, work, config, attempt.scratch)
    for one in judged.values():
        one.check_fits(dataset.target, dataset.transform.columns)
    golden = _count_all(dataset, list(judged.values()), config)
    verdict = _judge(str(work.inputs["candidate"]), judged, config)
    form = judged[CANDIDATE].package.form
    attempt.add_json(VERDICT_FILE, _verdict_json(verdict, work, form, config))
    attempt.add_json(METRICS_FILE, {role: one.details() for role, one in judged.items()})
    attempt.add_json(GOLDEN_FILE, _golden_json(judged[CANDIDATE], golden, config))
    attempt.facts.update(
        subject=verdict.subject,
        passed=verdict.passed,
        reasons=verdict.reasons,
        checks=verdict.table(),
        form=form,
        metrics={role: one.headline() for role, one in judged.items()},
    )


def _open_all(catalog: Catalog, work: Work, config: EvaluateConfig, scratch: Path) -> dict[str, Judged]:
    """Every model under judgement, by role."""
    opened = {}
    for role, source, form in [
        (CANDIDATE, "candidate", config.form),
        (FLOAT, "candidate", FLOAT_FORM),
        (CHAMPION, "champion", None),
    ]:
        if source not in work.inputs:
            continue
        folder = scratch / source
        if not folder.exists():
            catalog.fetch(work.inputs[source], folder)
        opened[role] = Judged(role, ModelPackage.open(folder, form, config.threads))
    return opened


def _count_all(dataset: Dataset, judged: list[Judged], config: EvaluateConfig) -> np.ndarray:
    """One pass over the test split; returns the raw feature rows to keep, (golden_rows, width), spread evenly."""
    num_rows = dataset.num_rows("test")
    if not num_rows:
        raise DataError("the test split is empty")
    chosen = np.unique(np.linspace(0, num_rows - 1, min(config.golden_rows, num_rows)).astype(np.int64))
    kind, transform = task_kind(dataset.target.task), judged[0].package.transform
    golden, position = [], 0
    for frame in dataset.frames("test"):
        targets = kind.encode(dataset.target, frame[dataset.target.column])
        for one in judged:
            one.count(frame, targets)
        here = chosen[(chosen >= position) & (chosen < position + len(frame))] - position
        golden.append(transform.rows(frame)[here])
        position += len(frame)
    return np.concatenate(golden)


def _judge(subject: str, judged: dict[str, Judged], config: EvaluateConfig) -> gates.Verdict:
    metric, candidate = config.metric, judged[CANDIDATE]
    value = candidate.value(metric)
    checks = [
        gates.floor("fraction of rows with finite outputs", candidate.finite_fraction, 1.0),
        gates.floor(metric, value, config.floor),
        gates.allowed_drop(
            metric, value, judged[FLOAT].value(metric), config.allowed_drop_against_float, against=FLOAT
        ),
    ]
    if CHAMPION in judged:
        reference = judged[CHAMPION].value(metric)
        checks.append(
            gates.allowed_drop(metric, value, reference, config.allowed_drop_against_champion, against=CHAMPION)
        )
    return gates.Verdict(subject=subject, checks=checks)


def _verdict_json(verdict: gates.Verdict, work: Work, form: str, config: EvaluateConfig) -> dict[str, Any]:
    return {
        **verdict.model_dump(mode="json"),
        "passed": verdict.passed,
        "reasons": verdict.reasons,
        "metric": config.metric,
        "form": form,
        "inputs": {role: ref.digest for role, ref in work.inputs.items()},
    }


def _golden_json(candidate: Judged, rows: np.ndarray, config: EvaluateConfig) -> dict[str, Any]:
    outputs = np.nan_to_num(candidate.package.outputs(rows).astype(np.float64))
    rounding = 10.0**-GOLDEN_DECIMALS
    return {
        "rows": rows.tolist(),
        "outputs": outputs.round(GOLDEN_DECIMALS).tolist(),
        "tolerance": max(float(config.golden_tolerance * np.abs(outputs).max()), rounding),
        "form": candidate.package.form,
    }
