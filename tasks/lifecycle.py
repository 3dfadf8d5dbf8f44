"""The records of a whole lifecycle run: its MLflow parent run, its report, its result."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.runtime import flow_run

from modelyard.artifacts import ArtifactRef
from modelyard.errors import RolledBack
from modelyard.presets import LifecycleConfig
from modelyard.tracking import Point
from tasks.results import LifecycleResult, RolloutResult, StageRefused, StageResult
from tasks.session import Session, session


@dataclass
class LifecycleRun:
    """One lifecycle while it runs. `id` is the MLflow parent run's."""

    id: str
    flow_run_id: str
    config: LifecycleConfig
    session: Session
    stages: list[StageResult | RolloutResult] = field(default_factory=list)
    refusal: str = ""

    def add(self, result: StageResult | RolloutResult) -> None:
        """Count a stage that is done."""
        self.stages.append(result)

    def refuse(self, refusal: StageRefused) -> None:
        """The gate said no: the report and the MLflow run, which ends as failed, say so with the scores."""
        self.refusal = str(refusal)
        self.add(refusal.result)
        self._record()

    def roll_back(self, refusal: RolledBack) -> None:
        """The rollout's gates said no: the report and the MLflow run say so, with the evidence in the rollout's page."""
        self.refusal = str(refusal)
        self._record()

    def report(self) -> LifecycleResult:
        """Write the report and the parent run's figures, and return what the run came to."""
        self._record()
        served = next(stage for stage in self.stages if isinstance(stage, RolloutResult))
        self.session.tracker.set_tags(self.id, {"modelyard.model_version": served.release.version})
        return LifecycleResult(
            flow_run_id=self.flow_run_id,
            mlflow_run_id=self.id,
            model_name=self.config.model_name,
            model_version=served.release.version,
            endpoint_url=served.release.endpoint_url,
            dataset_uri=self.config.dataset_uri,
            artifacts=self._artifacts(),
            metrics=self._metrics(),
            stages=self.stages,
        )

    def _record(self) -> None:
        """The parent run's figures, data set and references, and the report."""
        tracker, artifacts = self.session.tracker, self._artifacts()
        points = [
            Point(f"{model}.{name}", value) for model, row in self._metrics().items() for name, value in row.items()
        ]
        tracker.log_metrics(self.id, points)
        config, digest = self.config, artifacts["snapshot"].digest
        tracker.log_dataset(self.id, name=config.model_name, uri=config.dataset_uri, digest=digest)
        tracker.set_tags(self.id, {f"modelyard.digest.{kind}": ref.digest for kind, ref in artifacts.items()})
        self._publish_report()

    def _artifacts(self) -> dict[str, ArtifactRef]:
        found = [stage.ref for stage in self.stages if isinstance(stage, StageResult)]
        return {"snapshot": self._snapshot(found[0]), **{ref.kind: ref for ref in found}}

    def _metrics(self) -> dict[str, dict[str, float]]:
        """Scores on the test split, of the float model and of its compressed form."""
        verdict = next(stage for stage in self.stages if isinstance(stage, StageResult) and stage.stage == "evaluate")
        return {"float": _metrics_of(verdict, "float"), "compressed": _metrics_of(verdict, "candidate")}

    def _snapshot(self, dataset: ArtifactRef) -> ArtifactRef:
        """What the data set was made from."""
        made = self.session.catalog.manifest(dataset).provenance
        return self.session.catalog.resolve(made.input_uris["snapshot"])

    def _publish_report(self) -> None:
        text = _markdown(self)
        create_markdown_artifact(
            key="lifecycle-report", markdown=text, description=f"Lifecycle of {self.config.model_name}"
        )
        url = self.session.tracker.run_url(self.id)
        create_link_artifact(
            key="mlflow-run", link=url, link_text="MLflow run", description="Parameters, metrics, plots"
        )
        self.session.tracker.log_text(self.id, text, "report.md")


@contextmanager
def parent_run(config: LifecycleConfig, preset: str) -> Generator[LifecycleRun]:
    """The MLflow run that the stages' runs nest below; ended as failed when the block raises or the gate refuses."""
    now = session()
    flow_run_id = flow_run.get_id() or ""
    name = flow_run.get_name() or "lifecycle"
    tags = {
        "prefect.flow_run_id": flow_run_id,
        "modelyard.preset": preset,
        "modelyard.stage": "lifecycle",
        # What MLflow shows as the run's description.
        "mlflow.note.content": f"Lifecycle of preset `{preset}` over `{config.dataset_uri}`; the stages are nested below.",
    }
    if now.commit:
        tags["modelyard.commit"] = now.commit
    run_id = now.tracker.start_run(config.model_name, name, tags=tags)
    now.tracker.log_params(run_id, config.model_dump(mode="json"))
    run = LifecycleRun(id=run_id, flow_run_id=flow_run_id, config=config, session=now)
    succeeded = False
    try:
        yield run
        succeeded = not run.refusal
    finally:
        now.tracker.end_run(run_id, succeeded=succeeded)


def _metrics_of(verdict: StageResult, role: str) -> dict[str, float]:
    prefix = f"{role}."
    return {name.removeprefix(prefix): value for name, value in verdict.numbers.items() if name.startswith(prefix)}


def _markdown(run: LifecycleRun) -> str:
    """What went in, what came out, and where to look."""
    rows = [
        f"| {stage.stage} | {stage.headline} | {stage.usage.seconds:.1f} | {_artifact(stage)} |" for stage in run.stages
    ]
    served = [stage.release for stage in run.stages if isinstance(stage, RolloutResult)]
    outcome = "refused" if run.refusal else "served" if served else "unfinished"
    links = [f"- [MLflow run]({run.session.tracker.run_url(run.id)})"]
    links += [
        f"- endpoint [{release.endpoint_url}]({release.endpoint_url}/v2/models/{release.model_name}), revision"
        f" {release.revision}, version {release.version}"
        for release in served
    ]
    return "\n".join(
        [
            f"# {run.config.model_name}: {outcome}",
            "",
            *([run.refusal, ""] if run.refusal else []),
            f"Data: `{run.config.dataset_uri}`",
            "",
            "| stage | result | seconds | artifact |",
            "|---|---|---:|---|",
            *rows,
            "",
            *links,
        ]
    )


def _artifact(stage: StageResult | RolloutResult) -> str:
    if isinstance(stage, RolloutResult):
        return f"endpoint revision {stage.release.revision}"
    return f"`{stage.ref}`{' (found)' if stage.reused else ''}"
