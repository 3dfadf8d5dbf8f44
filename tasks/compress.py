"""Compression as tasks: forms that were said in one, a search in many."""

from __future__ import annotations

import base64
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from prefect import task
from prefect.artifacts import create_image_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run
from prefect.states import Completed, State

from modelyard.artifacts import ArtifactRef, Frozen
from modelyard.catalog import Origin, Product
from modelyard.compress import CompressConfig
from modelyard.compress import compress as compress_core
from modelyard.compress.outcomes import Built, Decision, Fell, Measured, Outcome, Recipe
from modelyard.compress.search import Search
from modelyard.compress.stage import compress_work
from modelyard.compress.techniques import Distil, NetworkTechnique
from modelyard.compress.workshop import shared_workshop
from modelyard.errors import PermanentError
from modelyard.model_package import FLOAT_FORM
from modelyard.models.config import CnnConfig, MlpConfig
from modelyard.tracking import Point
from tasks.policy import BACKOFF, JITTER, RETRIES, is_transient
from tasks.recording import Record, Trail, as_state, recording
from tasks.results import StageResult
from tasks.session import session

if TYPE_CHECKING:
    from modelyard.compress.candidates import Bench


class Subject(Frozen):
    """What a search is about."""

    model: ArtifactRef
    dataset: ArtifactRef
    config: CompressConfig


class Candidate(Frozen):
    """A recipe that was tried: its artifact, or why it fell."""

    name: str
    ref: ArtifactRef | None = None
    outcome: Built | Fell
    mlflow_run_id: str = ""


class OpenedRun(Frozen):
    """A stage's MLflow run that is open already, for the task that writes its end.

    Attributes:
        started: of the stage, on this process's monotonic clock.
    """

    run_id: str
    started: float

    def record(self, trail: Trail) -> Record:
        now = session()
        flow_run_id = trail.flow_run_id or flow_run.get_id() or ""
        origin = Origin(flow_run_id=flow_run_id, mlflow_run_id=self.run_id, commit=now.commit)
        return Record("compress", now, trail, self.run_id, origin, started=self.started)


@dataclass
class SearchRun:
    """One search while it runs: the networks that branches have, and the candidates made of them."""

    subject: Subject
    trail: Trail
    record: Record
    search: Search
    networks: dict[str, ArtifactRef] = field(default_factory=dict)
    candidates: dict[str, Candidate] = field(default_factory=dict)

    @property
    def below(self) -> Trail:
        """Where the records of its candidates belong."""
        return self.trail.model_copy(update={"parent_run_id": self.record.run_id})

    def package(self, decision: Decision) -> StageResult:
        """The end: the winner's package."""
        refs = {name: candidate.ref for name, candidate in self.candidates.items() if candidate.ref}
        opened = OpenedRun(run_id=self.record.run_id, started=self.record.started)
        return package(self.subject, refs, decision, self.trail, opened).result()


@task(retries=RETRIES, retry_delay_seconds=BACKOFF, retry_jitter_factor=JITTER, retry_condition_fn=is_transient,
      cache_policy=NO_CACHE)  # fmt: skip
def compress(model: ArtifactRef, dataset: ArtifactRef, config: CompressConfig, trail: Trail) -> State[StageResult]:
    """Make the forms that the config names, measure them; a package that was made before is found."""
    with recording("compress", config.model_dump(mode="json"), trail) as record:
        product = compress_core(record.session.catalog, model, dataset, config, record.origin)
        result = _concluded(record, product)
    return as_state(result)


def is_made(subject: Subject) -> bool:
    """Whether the package of this work exists."""
    catalog = session().catalog
    work = compress_work(catalog, subject.model, subject.dataset, subject.config)
    return catalog.find(work.kind, work.key) is not None


@contextmanager
def search_run(subject: Subject, trail: Trail) -> Generator[SearchRun]:
    """The MLflow run that the candidates' runs nest below."""
    from modelyard.compress.searched import new_search

    with recording("compress", subject.config.model_dump(mode="json"), trail) as record:
        yield SearchRun(subject=subject, trail=trail, record=record, search=new_search(_bench(subject)))


@task(retries=RETRIES, retry_delay_seconds=BACKOFF, retry_jitter_factor=JITTER, retry_condition_fn=is_transient,
      cache_policy=NO_CACHE, task_run_name="shrink {technique.label}")  # fmt: skip
def shrink(subject: Subject, technique: NetworkTechnique, trail: Trail) -> State[ArtifactRef | Fell]:
    """A smaller network of the trained one."""
    from modelyard.compress import candidates

    with recording(f"shrink {technique.label}", technique.model_dump(mode="json"), trail) as record:
        try:
            product = candidates.shrink(_bench(subject), technique, record.origin)
        except PermanentError as failure:
            return _fallen(record, Fell(reason=str(failure)), str(failure))
        _log_product(record, product)
    return Completed(data=product.ref, name="Cached" if product.reused else "Completed")


def student(subject: Subject, technique: Distil) -> MlpConfig | CnnConfig:
    """The narrower network that is to learn from the trained one."""
    from modelyard.compress import candidates

    return candidates.student(_bench(subject), technique)


@task(retries=RETRIES, retry_delay_seconds=BACKOFF, retry_jitter_factor=JITTER, retry_condition_fn=is_transient,
      cache_policy=NO_CACHE, task_run_name="build {recipe.name}")  # fmt: skip
def build(
    subject: Subject, recipe: Recipe, network: ArtifactRef, float_form: ArtifactRef | None, trail: Trail
) -> State[Candidate]:
    """One candidate, in a process of its own. One that cannot be made is a result too, with its reason."""
    from modelyard.compress import candidates

    with recording(f"candidate {recipe.name}", recipe.model_dump(mode="json"), trail) as record:
        try:
            product = candidates.build(_bench(subject), recipe, network, float_form, record.origin)
        except PermanentError as failure:
            fell = Candidate(name=recipe.name, outcome=Fell(reason=str(failure)), mlflow_run_id=record.run_id)
            return _fallen(record, fell, str(failure))
        outcome = candidates.outcome_of(product.manifest)
        _log_product(record, product)
        numbers = {"size_bytes": outcome.size_bytes, "parameters": outcome.parameters, "macs": outcome.macs}
        drops = {f"drop_{name}": drop.drop for name, drop in outcome.drops.items()}
        bounds = {f"drop_{name}_bound": drop.bound for name, drop in outcome.drops.items()}
        points = [Point(name, float(value)) for name, value in {**numbers, **drops, **bounds}.items()]
        record.session.tracker.log_metrics(record.run_id, points)
    made = Candidate(name=recipe.name, ref=product.ref, outcome=outcome, mlflow_run_id=record.run_id)
    return Completed(data=made, name="Cached" if product.reused else "Completed")


@task(retries=RETRIES, retry_delay_seconds=BACKOFF, retry_jitter_factor=JITTER, retry_condition_fn=is_transient,
      cache_policy=NO_CACHE)  # fmt: skip
def measure(subject: Subject, made: Mapping[str, Candidate]) -> dict[str, Outcome]:
    """Latency of candidates in turns with the float form, while nobody builds on this machine."""
    from modelyard.compress import candidates

    refs = {name: candidate.ref for name, candidate in made.items() if candidate.ref}
    found = candidates.measure(_bench(subject), refs, FLOAT_FORM)
    for name, outcome in found.items():
        points = _latency_points(outcome) if isinstance(outcome, Measured) else []
        session().tracker.log_metrics(made[name].mlflow_run_id, points)
    return found


@task(retries=RETRIES, retry_delay_seconds=BACKOFF, retry_jitter_factor=JITTER, retry_condition_fn=is_transient,
      cache_policy=NO_CACHE)  # fmt: skip
def package(
    subject: Subject, refs: Mapping[str, ArtifactRef], decision: Decision, trail: Trail, opened: OpenedRun
) -> State[StageResult]:
    """The winner and the float form as a package with its evidence; table and picture of the search."""
    from modelyard.compress.searched import assemble

    record = opened.record(trail)
    product = assemble(_bench(subject), refs, decision, record.origin)
    _show_search(record, decision)
    return as_state(_concluded(record, product))


# -- details ----------------------------------------------------------------------------------------------


def _bench(subject: Subject) -> Bench:
    from modelyard.compress.candidates import Bench

    return Bench(
        catalog=session().catalog,
        workshop=shared_workshop(),
        model=subject.model,
        dataset=subject.dataset,
        config=subject.config,
    )


def _fallen(record: Record, data: object, reason: str) -> State:
    record.session.tracker.set_tags(record.run_id, {"modelyard.fell": reason[:500]})
    return Completed(data=data, name="Fell", message=reason)


def _log_product(record: Record, product: Product) -> None:
    tags = {"modelyard.artifact": product.ref.uri, "modelyard.digest": product.ref.digest}
    if product.reused:
        tags["reused_from"] = product.manifest.provenance.mlflow_run_id or "unknown"
    record.session.tracker.set_tags(record.run_id, tags)


def _latency_points(measured: Measured) -> list[Point]:
    return [
        Point(f"batch_{batch}_{name}", value)
        for batch, latency in measured.latency.items()
        for name, value in {"p50_ms": latency.p50_ms, "p99_ms": latency.p99_ms, "of_float": latency.ratio}.items()
    ]


def _show_search(record: Record, decision: Decision) -> None:
    """The Pareto front as a picture, and every candidate with its numbers and its reason."""
    from modelyard.compress.front import front_figure, front_png, table

    tracker = record.session.tracker
    tracker.log_figure(record.run_id, front_figure(decision), "candidates.png")
    tracker.log_text(record.run_id, decision.model_dump_json(indent=1), "candidates.json")
    create_table_artifact(
        key="compress-candidates", table=table(decision), description=f"{decision.winner} wins: {decision.why}"
    )
    picture = base64.b64encode(front_png(decision)).decode()
    create_image_artifact(
        key="compress-front",
        image_url=f"data:image/png;base64,{picture}",
        description="Size against latency; the line is the Pareto front, the star the winner",
    )


def _concluded(record: Record, product: Product) -> StageResult:
    """The stage's figures, its table of forms, and its headline."""
    facts, measurements = product.manifest.content.facts, product.manifest.provenance.measurements
    rows = _forms_table(facts, measurements)
    numbers = {f"{row['form']}.{name}": float(row[name]) for row in rows for name in row if name != "form"}
    create_table_artifact(key="compress-forms", table=rows, description="Size and latency of each form, one thread")
    return record.conclude(product, _headline(facts, measurements), numbers)


def _headline(facts: dict, measurements: dict) -> str:
    """``int8 is 0.36 of the float size``, or that the float model goes on."""
    form, sizes = facts["default_form"], facts["size_bytes"]
    if form == FLOAT_FORM and "search" in measurements:
        return measurements["search"]["why"]
    return f"{form} is {sizes[form] / sizes[FLOAT_FORM]:.2f} of the float size"


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
