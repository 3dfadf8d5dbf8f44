"""What every stage leaves behind for people: an MLflow run, and figures about itself.

A stage whose artifact was found leaves a run too, tagged with the run that made it, so that a lifecycle's MLflow page
is whole whether or not anything was computed.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from prefect.runtime import flow_run
from prefect.states import Completed, State

from modelyard.artifacts import ArtifactRef, Frozen
from modelyard.catalog import Origin, Product
from modelyard.naming import find_artifact
from modelyard.tracking import Point
from modelyard.train import trained_model
from tasks.results import StageResult, Usage
from tasks.session import Session, session


class Trail(Frozen):
    """What a stage hands down so that its records can be found again.

    Attributes:
        model_name: MLflow experiment and name in the registry.
        parent_run_id: MLflow run to nest below; empty for a stage that runs alone.
        flow_run_id: the Prefect run a person started.
    """

    model_name: str
    parent_run_id: str = ""
    flow_run_id: str = ""


@dataclass
class Record:
    """One stage while it runs."""

    stage: str
    session: Session
    trail: Trail
    run_id: str
    origin: Origin
    started: float = field(default_factory=time.monotonic)
    traffic_before: tuple[int, int] = (0, 0)
    device_seconds: float | None = None
    rank_bytes_in: int = 0

    def usage(self, stored: int = 0) -> Usage:
        """What the stage has cost up to now."""
        seconds = time.monotonic() - self.started
        traffic = self.session.store.traffic
        return Usage(
            seconds=round(seconds, 3),
            device_seconds=round(seconds if self.device_seconds is None else self.device_seconds, 3),
            bytes_in=traffic.bytes_in - self.traffic_before[0] + self.rank_bytes_in,
            bytes_out=traffic.bytes_out - self.traffic_before[1],
            bytes_stored=stored,
        )

    def conclude(self, product: Product, headline: str, numbers: Mapping[str, float] | None = None) -> StageResult:
        """Write the stage's figures and references to its MLflow run."""
        tags = {"modelyard.artifact": product.ref.uri, "modelyard.digest": product.ref.digest}
        for role, digest in product.manifest.content.inputs.items():
            tags[f"modelyard.input.{role}"] = digest
        if product.reused:
            tags["reused_from"] = product.manifest.provenance.mlflow_run_id or "unknown"
        self.session.tracker.set_tags(self.run_id, tags)
        usage = self.usage(stored=sum(entry.size for entry in product.manifest.content.files.values()))
        figures = {**(numbers or {}), **{f"usage.{name}": value for name, value in usage.model_dump().items()}}
        self.session.tracker.log_metrics(self.run_id, [Point(name, float(value)) for name, value in figures.items()])
        return StageResult(
            stage=self.stage,
            ref=product.ref,
            reused=product.reused,
            headline=headline,
            numbers=dict(numbers or {}),
            mlflow_run_id=self.run_id,
            usage=usage,
        )


def origin_of(trail: Trail, mlflow_run_id: str | None = None, commit: str | None = None) -> Origin:
    """Who does it: the flow run that a person started, or else this one."""
    flow_run_id = trail.flow_run_id or flow_run.get_id() or ""
    return Origin(flow_run_id=flow_run_id, mlflow_run_id=mlflow_run_id, commit=commit)


@contextmanager
def recording(stage: str, config: Mapping[str, Any], trail: Trail, name: str = "") -> Generator[Record]:
    """An MLflow run around a stage, ended as failed when the stage raises; called as the stage unless named."""
    now = session()
    flow_run_id = origin_of(trail).flow_run_id or ""
    tags = {"modelyard.stage": stage, "prefect.flow_run_id": flow_run_id}
    if now.commit:
        tags["modelyard.commit"] = now.commit
    run_id = now.tracker.start_run(
        trail.model_name, name or stage, parent_run_id=trail.parent_run_id or None, tags=tags
    )
    now.tracker.log_params(run_id, {stage: dict(config)})
    record = Record(
        stage=stage,
        session=now,
        trail=trail,
        run_id=run_id,
        origin=origin_of(trail, run_id, now.commit),
        traffic_before=(now.store.traffic.bytes_in, now.store.traffic.bytes_out),
    )
    succeeded = False
    try:
        yield record
        succeeded = True
    finally:
        now.tracker.end_run(run_id, succeeded=succeeded)


def as_state(result: StageResult) -> State[StageResult]:
    """A task's final state; work that was found shows as ``Cached`` in the UI."""
    name = "Cached" if result.reused else "Completed"
    return Completed(data=result, name=name, message=result.headline)


def resolve(name: str) -> ArtifactRef:
    """An artifact as a parameter of a stage flow names it: digest, URI, ``model@alias`` or ``model/version``."""
    now = session()
    return find_artifact(now.catalog, now.tracker, name)


def resolve_model(name: str) -> ArtifactRef:
    """The trained model that a parameter names; for a registered version, the one it was made from."""
    return trained_model(session().catalog, resolve(name))
