"""From a finished search to its package, and a whole search in one process."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Attempt, Catalog, Origin, Product
from modelyard.compress import candidates
from modelyard.compress.candidates import FORM_FILE, Bench, outcome_of
from modelyard.compress.config import CompressConfig
from modelyard.compress.mlmodel import mlmodel_yaml
from modelyard.compress.outcomes import Decision, Fell, Outcome, Recipe
from modelyard.compress.search import Search, conduct
from modelyard.compress.stage import compress_work, installed_libraries
from modelyard.compress.workshop import shared_workshop
from modelyard.datasets import TARGET_FILE
from modelyard.errors import ConversionFailed, PermanentError
from modelyard.likeness import NEARNESS
from modelyard.model_package import FLOAT_FORM, MLMODEL_FILE, PACKAGE_FILE, TRANSFORM_FILE, PackageSpec
from modelyard.models.config import MODEL_FILE, ModelSpec
from modelyard.runtime import RuntimeSpec
from modelyard.runtime.hosts import describe_host
from modelyard.task_kinds import Target, task_kind


def search_here(
    catalog: Catalog, model: ArtifactRef, dataset: ArtifactRef, config: CompressConfig, origin: Origin
) -> Product:
    """Search and package, candidate after candidate, without flows and without the train stage."""
    bench = Bench(catalog=catalog, workshop=shared_workshop(), model=model, dataset=dataset, config=config)
    refs: dict[str, ArtifactRef] = {}

    def build(recipes: Sequence[Recipe]) -> dict[str, Outcome]:
        return {recipe.name: _tried(partial(_build_one, bench, recipe, refs, origin)) for recipe in recipes}

    def measure(recipes: Sequence[Recipe]) -> dict[str, Outcome]:
        return candidates.measure(bench, {recipe.name: refs[recipe.name] for recipe in recipes}, FLOAT_FORM)

    return assemble(bench, refs, conduct(new_search(bench), build, measure), origin)


def new_search(bench: Bench) -> Search:
    """The search of a trained model, before anything was told."""
    target = Target.model_validate_json(bench.catalog.read(bench.model, TARGET_FILE))
    return Search(bench.search, NEARNESS if target.task == "embedding" else task_kind(target.task).headline)


def assemble(bench: Bench, refs: Mapping[str, ArtifactRef], decision: Decision, origin: Origin) -> Product:
    """The package of a search's winner: its form and the float one, with everything that was found as evidence."""
    work = compress_work(bench.catalog, bench.model, bench.dataset, bench.config)
    return bench.catalog.produce(work, partial(_fill, bench, refs, decision), origin)


def evidence(bench: Bench, decision: Decision) -> dict[str, Any]:
    """What the decision rests on: the budget, every candidate with its numbers, the machine, the versions."""
    return {
        "budget": bench.search.budget.model_dump(mode="json"),
        "prefer": bench.search.prefer,
        "winner": decision.winner,
        "why": decision.why,
        "candidates": [standing.model_dump(mode="json") for standing in decision.standings],
        "measure": bench.config.measure.model_dump(mode="json"),
        "host": describe_host(),
        "versions": {name: version(name) for name in installed_libraries(_spec(bench))},
    }


def _spec(bench: Bench) -> ModelSpec:
    return ModelSpec.model_validate_json(bench.catalog.read(bench.model, MODEL_FILE))


def _build_one(bench: Bench, recipe: Recipe, refs: dict[str, ArtifactRef], origin: Origin) -> Outcome:
    network = bench.model
    if recipe.network:
        if recipe.network.needs_training:
            raise ConversionFailed("it needs the train stage, which only the flow can ask")
        network = candidates.shrink(bench, recipe.network, origin).ref
    trunk = None if recipe.form is None else refs[recipe.trunk]
    product = candidates.build(bench, recipe, network, trunk, origin)
    refs[recipe.name] = product.ref
    return outcome_of(product.manifest)


def _tried(attempt: Callable[[], Outcome]) -> Outcome:
    try:
        return attempt()
    except PermanentError as failure:
        return Fell(reason=str(failure))


def _fill(bench: Bench, refs: Mapping[str, ArtifactRef], decision: Decision, attempt: Attempt) -> None:
    catalog = bench.catalog
    forms: dict[str, RuntimeSpec] = {}
    sizes, operators, parities = {}, {}, {}
    for name in dict.fromkeys([FLOAT_FORM, decision.winner]):
        folder = attempt.scratch / name
        manifest = catalog.fetch(refs[name], folder)
        spec = RuntimeSpec.model_validate(json.loads((folder / FORM_FILE).read_text()))
        forms[name] = spec.model_copy(update={"threads": bench.config.measure.threads})
        for file in spec.files:
            attempt.add(file, folder / file)
        sizes[name], operators[name] = spec.size_bytes(folder), manifest.content.facts["operators"]
        parities[name] = manifest.provenance.measurements["parity"]
    target = Target.model_validate_json(catalog.read(bench.model, TARGET_FILE))
    package = PackageSpec(target=target, forms=forms, default_form=decision.winner)
    attempt.add_json(PACKAGE_FILE, package.model_dump(mode="json"))
    attempt.add_bytes(TRANSFORM_FILE, catalog.read(bench.model, TRANSFORM_FILE))
    attempt.add_bytes(MLMODEL_FILE, mlmodel_yaml())
    winner = next(one for one in decision.standings if one.name == decision.winner)
    attempt.facts.update(
        size_bytes=sizes,
        operators=operators,
        default_form=decision.winner,
        candidates={name: ref.digest for name, ref in sorted(refs.items()) if name in forms},
        gain=winner.gain,
    )
    attempt.measurements.update(
        latency_ms=_latencies(decision, forms), parity=parities, threads=bench.config.measure.threads,
        search=evidence(bench, decision),
    )  # fmt: skip


def _latencies(decision: Decision, forms: Mapping[str, RuntimeSpec]) -> dict[str, dict[str, float]]:
    """Form -> batch size -> median ms, of what was measured."""
    return {
        one.name: {str(batch): latency.p50_ms for batch, latency in one.measured.latency.items()}
        if one.measured
        else {}
        for one in decision.standings
        if one.name in forms
    }
