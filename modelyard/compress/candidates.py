"""Candidates of a search as artifacts: made once, found again, each built in a process of its own."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from modelyard.artifacts import ArtifactRef, Manifest
from modelyard.catalog import Attempt, Catalog, Origin, Product, Work
from modelyard.code_version import code_version
from modelyard.compress.config import CompressConfig, SearchConfig
from modelyard.compress.latency import Timing
from modelyard.compress.looks import LOOKS, Take, together, until_settled
from modelyard.compress.outcomes import Built, Fell, Latency, Measured, Outcome, Recipe
from modelyard.compress.quiet import MACHINE_SECONDS, building, measuring
from modelyard.compress.rows import CALIBRATION_ROWS, Rows
from modelyard.compress.stage import installed_libraries
from modelyard.compress.techniques import Distil, NetworkTechnique
from modelyard.compress.workshop import Workshop
from modelyard.datasets import TARGET_FILE
from modelyard.errors import ConversionFailed, PermanentError
from modelyard.model_package import TRANSFORM_FILE
from modelyard.models.config import MODEL_FILE, CnnConfig, MlpConfig, ModelSpec
from modelyard.models.weights import fetch_weights, weight_files
from modelyard.runtime import RuntimeSpec

BESIDE_WEIGHTS = (MODEL_FILE, TRANSFORM_FILE, TARGET_FILE)
FORM_FILE = "form.json"


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all candidates of a search share.

    Attributes:
        model: the trained model.
        dataset: whose training rows calibrate, and whose validation rows judge.
    """

    catalog: Catalog
    workshop: Workshop
    model: ArtifactRef
    dataset: ArtifactRef
    config: CompressConfig

    @property
    def search(self) -> SearchConfig:
        assert self.config.search is not None
        return self.config.search


def shrink(bench: Bench, technique: NetworkTechnique, origin: Origin) -> Product:
    """A smaller network of the trained one: a ``model`` artifact, as the train stage could have made it.

    Raises:
        ConversionFailed: nothing in the network gets smaller by it.
    """
    work = Work(
        kind="model",
        config={"shrink": technique.model_dump(mode="json", exclude={"recovery"})},
        inputs={"model": bench.model, "dataset": bench.dataset},
        code_version=_code_version(bench),
    )
    return bench.catalog.produce(work, partial(_shrink, bench, technique), origin)


def student(bench: Bench, technique: Distil) -> MlpConfig | CnnConfig:
    """The narrower network that learns from the trained one.

    Raises:
        ConversionFailed: only networks of the kinds ``mlp`` and ``cnn`` can be told narrower.
    """

    def narrower(width: int) -> int:
        return max(1, round(width * technique.width_fraction))

    spec = ModelSpec.model_validate_json(bench.catalog.read(bench.model, MODEL_FILE))
    if isinstance(spec.model, MlpConfig):
        return spec.model.model_copy(update={"hidden_sizes": tuple(map(narrower, spec.model.hidden_sizes))})
    if isinstance(spec.model, CnnConfig):
        channels, hidden = tuple(map(narrower, spec.model.channels)), narrower(spec.model.hidden)
        return spec.model.model_copy(update={"channels": channels, "hidden": hidden})
    raise ConversionFailed(f"a network of the kind {spec.model.kind} has no narrower one that could be told from it")


def build(
    bench: Bench, recipe: Recipe, network: ArtifactRef, float_form: ArtifactRef | None, origin: Origin
) -> Product:
    """One form of a network as a ``candidate`` artifact; `outcome_of` reads what is known of it.

    Args:
        network: the ``model`` artifact of the recipe's network.
        float_form: the ``candidate`` that is its float form, which the others are made from; None for itself.

    Raises:
        ConversionFailed, MissingExtra: why the candidate falls.
    """
    technique = recipe.form.model_dump(mode="json") if recipe.form else None
    work = Work(
        kind="candidate",
        config={
            "name": recipe.name,
            "form": technique,
            "confidence": bench.search.budget.confidence,
            "parity_tolerance": bench.config.parity_tolerance,
        },
        inputs={"model": network, "parent": bench.model, "dataset": bench.dataset}
        | ({"float": float_form} if float_form else {}),
        code_version=_code_version(bench),
    )
    return bench.catalog.produce(work, partial(_build, bench, recipe, network, float_form), origin)


def outcome_of(manifest: Manifest) -> Built:
    """What a candidate's manifest says of it."""
    facts, seen = manifest.content.facts, manifest.provenance.measurements
    return Built(
        size_bytes=facts["size_bytes"], parameters=facts["parameters"], macs=facts["macs"], drops=seen["drops"]
    )


def measure(bench: Bench, candidates: Mapping[str, ArtifactRef], reference: str) -> dict[str, Outcome]:
    """Latency of candidates, in turns with the reference, on a machine where nobody builds meanwhile.

    A candidate that brings the measuring down is found by measuring each one alone with the reference.
    """
    with tempfile.TemporaryDirectory(prefix="modelyard-measure-") as scratch:
        folder = Path(scratch)
        forms = {name: _fetched_form(bench, ref, folder / name) for name, ref in candidates.items()}
        rows = Rows.fetch(bench.catalog, bench.dataset, bench.model, folder / "rows", ["validation"])
        np.save(folder / "features.npy", rows.some("validation", max(bench.config.measure.batches)))
        with measuring(MACHINE_SECONDS):
            try:
                return _measured(bench, forms, reference, folder)
            except PermanentError as failure:
                if set(forms) == {reference}:
                    return {reference: Fell(reason=str(failure))}
            return _one_by_one(bench, forms, reference, folder)


# -- jobs -------------------------------------------------------------------------------------------------


def _shrink(bench: Bench, technique: NetworkTechnique, attempt: Attempt) -> None:
    model, out = attempt.scratch / "model", attempt.scratch / "smaller"
    out.mkdir()
    fetch_weights(bench.catalog, bench.model, model, BESIDE_WEIGHTS)
    rows = Rows.fetch(bench.catalog, bench.dataset, bench.model, attempt.scratch / "rows", ["train"])
    seen, targets = rows.some_labelled("train", getattr(technique, "rows", 1))
    np.save(attempt.scratch / "rows.npy", seen)
    np.save(attempt.scratch / "targets.npy", targets)
    request = {
        "model": str(model),
        "technique": technique.model_dump(mode="json"),
        "rows": str(attempt.scratch / "rows.npy"),
        "targets": str(attempt.scratch / "targets.npy"),
        "target": rows.target.model_dump(mode="json"),
        "out": str(out),
        "threads": _builder_threads(bench.search),
    }
    facts = _in_workshop(bench, "shrink", request, attempt.scratch / "job")
    for name in (MODEL_FILE, *weight_files(path.name for path in out.iterdir())):
        attempt.add(name, out / name)
    for name in (TRANSFORM_FILE, TARGET_FILE):
        attempt.add(name, model / name)
    attempt.facts.update(facts)


def _build(
    bench: Bench, recipe: Recipe, network: ArtifactRef, float_form: ArtifactRef | None, attempt: Attempt
) -> None:
    scratch, catalog = attempt.scratch, bench.catalog
    out = scratch / "out"
    out.mkdir()
    fetch_weights(catalog, bench.model, scratch / "parent", BESIDE_WEIGHTS)
    fetch_weights(catalog, network, scratch / "model", BESIDE_WEIGHTS)
    rows = Rows.fetch(catalog, bench.dataset, bench.model, scratch / "rows", ["train", "validation"])
    features, targets = rows.all("validation")
    for name, values in {
        "features": features,
        "targets": targets,
        "calibration": rows.some("train", CALIBRATION_ROWS),
    }.items():
        np.save(scratch / f"{name}.npy", values)
    request = {
        **{name: str(scratch / name) for name in ("parent", "model", "out")},
        **{name: str(scratch / f"{name}.npy") for name in ("features", "targets", "calibration")},
        "target": rows.target.model_dump(mode="json"),
        "name": recipe.name,
        "float": _float_file(bench, float_form, scratch / "float"),
        "technique": recipe.form.model_dump(mode="json") if recipe.form else None,
        "threads": _builder_threads(bench.search),
        "parity_tolerance": bench.config.parity_tolerance,
        "confidence": bench.search.budget.confidence,
    }
    made = _in_workshop(bench, "build", request, scratch / "job")
    spec = RuntimeSpec.model_validate(made.pop("spec"))
    for name in spec.files:
        attempt.add(name, out / name)
    attempt.add_json(FORM_FILE, spec.model_dump(mode="json"))
    attempt.measurements.update(drops=made.pop("drops"), parity=made.pop("parity"))
    attempt.facts.update(made)


def _in_workshop(bench: Bench, job: str, request: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    with building(MACHINE_SECONDS):
        return bench.workshop.run(job, request, folder, bench.search.candidate_seconds)


def _float_file(bench: Bench, float_form: ArtifactRef | None, folder: Path) -> str | None:
    if float_form is None:
        return None
    form = _fetched_form(bench, float_form, folder)
    return str(folder / form["spec"]["file"])


def _fetched_form(bench: Bench, ref: ArtifactRef, folder: Path) -> dict[str, Any]:
    bench.catalog.fetch(ref, folder)
    return {"folder": str(folder), "spec": json.loads((folder / FORM_FILE).read_text())}


def _measured(bench: Bench, forms: Mapping[str, Any], reference: str, folder: Path) -> dict[str, Outcome]:
    search, batches = bench.search, bench.config.measure.batches

    def take(contenders: Collection[str] | None) -> Take:
        if contenders is None:
            return _take(bench, forms, reference, folder, batches)
        some = {name: form for name, form in forms.items() if name in contenders or name == reference}
        return _take(bench, some, reference, folder, batches[:1])

    takes = until_settled(take, batches[0], search.tie_fraction if search.prefer == "speed" else None)
    found = {batch: together(takes, batch) for batch in batches}
    return {
        name: Measured(latency={batch: Latency.model_validate(asdict(found[batch][name])) for batch in batches})
        for name in forms
    }


def _take(
    bench: Bench, forms: Mapping[str, Any], reference: str, folder: Path, batches: Sequence[int]
) -> dict[int, dict[str, Timing]]:
    """What one fresh process measures, with its share of rounds and runs."""
    config, share = bench.config.measure, LOOKS[0]
    request = {
        "forms": dict(forms),
        "reference": reference,
        "features": str(folder / "features.npy"),
        "batches": list(batches),
        "threads": config.threads,
        "rounds": math.ceil(bench.search.rounds / share),
        "repeats": math.ceil(config.repeats / share),
    }
    seconds = bench.search.candidate_seconds * len(forms)
    told = bench.workshop.run("measure", request, folder / "job", seconds, _cores(config.threads))
    return {int(batch): {name: Timing(**told[batch][name]) for name in forms} for batch in told}


def _one_by_one(bench: Bench, forms: Mapping[str, Any], reference: str, folder: Path) -> dict[str, Outcome]:
    found: dict[str, Outcome] = {}
    for name in forms:
        try:
            pair = {reference: forms[reference], name: forms[name]}
            found |= {name: _measured(bench, pair, reference, folder)[name]}
        except PermanentError as failure:
            found[name] = Fell(reason=f"when it was measured: {failure}")
    return found


# -- details ----------------------------------------------------------------------------------------------


def _code_version(bench: Bench) -> str:
    spec = ModelSpec.model_validate_json(bench.catalog.read(bench.model, MODEL_FILE))
    return code_version("modelyard.compress", installed_libraries(spec), spec.factories)


def _builder_threads(config: SearchConfig) -> int:
    return max(1, (os.cpu_count() or 1) // config.builders)


def _cores(threads: int) -> Sequence[int]:
    """As many cores as threads, the last of those that this process may use: the first has the interrupts."""
    return sorted(os.sched_getaffinity(0))[-threads:]
