"""Runs, metrics and the model registry: the only file that imports mlflow.

One process writes a run: the one that carries out the stage. Metrics go in batches (57 times faster than one by one).
Importing mlflow costs two seconds, so it happens at the first use.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from modelyard.artifacts import ArtifactRef, Frozen, Manifest
from modelyard.catalog import Origin
from modelyard.errors import NotFound, PermanentError, TrackerUnavailable
from modelyard.settings import Settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow.tracking import MlflowClient

REQUEST_SECONDS = "20"
REQUEST_RETRIES = "3"
FLUSH_POINTS = 200
FLUSH_SECONDS = 2.0
PARAM_LIMIT = 500  # characters MLflow accepts in a parameter's value
SYSTEM_SAMPLE_SECONDS = 2


class RegisteredVersion(Frozen):
    """One version of a model in the registry, with the artifacts it stands for."""

    model_name: str
    version: str
    artifact: ArtifactRef
    verdict: ArtifactRef
    mlflow_run_id: str | None = None
    flow_run_id: str | None = None


@dataclass(frozen=True)
class Point:
    """One value of a metric at a step."""

    name: str
    value: float
    step: int = 0


class MetricBuffer:
    """Collects points of one run and sends them together; `flush` sends the rest."""

    def __init__(self, tracker: Tracker, run_id: str) -> None:
        self._tracker = tracker
        self._run_id = run_id
        self._points: list[Point] = []
        self._sent_at = time.monotonic()

    def add(self, values: Mapping[str, float], step: int) -> None:
        self._points += [Point(name, value, step) for name, value in values.items()]
        if len(self._points) >= FLUSH_POINTS or time.monotonic() - self._sent_at > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        points, self._points = self._points, []
        self._sent_at = time.monotonic()
        if points:
            self._tracker.log_metrics(self._run_id, points)


class Tracker:
    """One MLflow server.

    Every method raises `TrackerUnavailable` for what may pass and `PermanentError` for what the server refuses.
    """

    def __init__(self, settings: Settings) -> None:
        self.url = settings.tracking_url
        self._experiments: dict[str, str] = {}

    @cached_property
    def _client(self) -> MlflowClient:
        # Bounds on every request; mlflow's own defaults wait for minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", REQUEST_SECONDS)
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", REQUEST_RETRIES)
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow.tracking import MlflowClient

        return MlflowClient(tracking_uri=self.url, registry_uri=self.url)

    # -- runs -----------------------------------------------------------------------------------------

    def start_run(
        self, experiment: str, name: str, *, parent_run_id: str | None = None, tags: Mapping[str, str] | None = None
    ) -> str:
        """Begin a run, nested below ``parent_run_id`` where given; returns its id."""
        nesting = {"mlflow.parentRunId": parent_run_id} if parent_run_id else {}
        with _translated(self.url):
            run = self._client.create_run(
                self._experiment_id(experiment), run_name=name, tags={**(tags or {}), **nesting}
            )
        return run.info.run_id

    def end_run(self, run_id: str, *, succeeded: bool) -> None:
        with _translated(self.url):
            self._client.set_terminated(run_id, "FINISHED" if succeeded else "FAILED")

    def end_runs_of(self, flow_run_id: str) -> list[str]:
        """End every run that a flow run left open, and the runs nested below it; returns their ids."""
        ended: list[str] = []
        with _translated(self.url):
            experiments = [experiment.experiment_id for experiment in self._client.search_experiments()]
            waiting = [f"tags.`prefect.flow_run_id` = '{flow_run_id}'"]
            while waiting:
                query = f"{waiting.pop()} and attributes.status = 'RUNNING'"
                for run in self._client.search_runs(experiments, query):
                    self._client.set_terminated(run.info.run_id, "KILLED")
                    ended.append(run.info.run_id)
                    waiting.append(f"tags.`mlflow.parentRunId` = '{run.info.run_id}'")
        return ended

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        with _translated(self.url):
            self._client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def log_params(self, run_id: str, tree: Mapping[str, Any]) -> None:
        """A config tree as flat parameters: ``train.optimizer.name``."""
        from mlflow.entities import Param

        params = [Param(_param_name(key), str(value)[:PARAM_LIMIT]) for key, value in flatten(tree).items()]
        with _translated(self.url):
            for start in range(0, len(params), 100):  # MLflow's limit per request
                self._client.log_batch(run_id, params=params[start : start + 100])

    def log_metrics(self, run_id: str, points: Sequence[Point]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(point.name, point.value, now, point.step) for point in points]
        with _translated(self.url):
            for start in range(0, len(metrics), 1000):
                self._client.log_batch(run_id, metrics=metrics[start : start + 1000])

    def buffered_metrics(self, run_id: str) -> MetricBuffer:
        """Metrics of a run in batches, for what reports often."""
        return MetricBuffer(self, run_id)

    def log_dataset(self, run_id: str, *, name: str, uri: str, digest: str, profile: str = "") -> None:
        """Name a data set as an input of the run."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        # MLflow keeps 36 characters of a digest; the whole one is in the source and the run's tags.
        dataset = Dataset(
            name=name,
            digest=digest[:36],
            source_type="s3",
            source=f'{{"uri": "{uri}", "digest": "{digest}"}}',
            profile=profile or None,
        )
        context = InputTag("mlflow.data.context", "training")
        with _translated(self.url):
            self._client.log_inputs(run_id, [DatasetInput(dataset, [context])])

    def log_figure(self, run_id: str, figure: Figure, file: str) -> None:
        with _translated(self.url):
            self._client.log_figure(run_id, figure, file)

    def log_text(self, run_id: str, text: str, file: str) -> None:
        with _translated(self.url):
            self._client.log_text(run_id, text, file)

    @contextmanager
    def system_metrics(self, run_id: str) -> Generator[None]:
        """Sample the machine (CPU, memory, network; GPUs where there are any) into the run while the block runs."""
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        with _translated(self.url):
            _ = self._client
            monitor = SystemMetricsMonitor(
                run_id, sampling_interval=SYSTEM_SAMPLE_SECONDS, resume_logging=False, tracking_uri=self.url
            )
            monitor.start()
        try:
            yield
        finally:
            # Joining waits for a whole sampling interval: let it end beside what comes next.
            threading.Thread(target=monitor.finish, daemon=True).start()

    def run_url(self, run_id: str) -> str:
        """The page of a run, for people."""
        with _translated(self.url):
            run = self._client.get_run(run_id)
        # Without the query MLflow shows its GenAI side: the run counts as an "evaluation run" among traces and judges.
        return f"{self.url}/#/experiments/{run.info.experiment_id}/runs/{run_id}?workflowType=machine_learning"

    def artifact_url(self, run_id: str, file: str) -> str:
        """Where people see one file of a run."""
        page, _, query = self.run_url(run_id).partition("?")
        return f"{page}/artifacts/{file}?{query}"

    # -- registry -------------------------------------------------------------------------------------

    def register(
        self, model_name: str, artifact: ArtifactRef, verdict: ArtifactRef, manifest: Manifest, origin: Origin
    ) -> str:
        """The registry version of an artifact: the one it has, or a new one whose source is the artifact's folder."""
        known = self._version_of(model_name, artifact)
        if known:
            return known
        source = f"{artifact.uri}/{manifest.file_path('').rstrip('/')}"
        tags = _version_tags(artifact, verdict, origin)
        with _translated(self.url):
            self._ensure_model(model_name)
            version = self._client.create_model_version(
                model_name, source, run_id=origin.mlflow_run_id, tags=tags, await_creation_for=30
            )
        return str(version.version)

    def set_alias(self, model_name: str, alias: str, version: str) -> None:
        with _translated(self.url):
            self._client.set_registered_model_alias(model_name, alias, version)

    def version_by_alias(self, model_name: str, alias: str) -> RegisteredVersion | None:
        """The version an alias names, or None where the model or the alias does not exist."""
        try:
            with _translated(self.url):
                return _registered(self._client.get_model_version_by_alias(model_name, alias))
        except NotFound:
            return None

    def version(self, model_name: str, version: str) -> RegisteredVersion:
        """One version by its number.

        Raises:
            NotFound: there is none.
        """
        with _translated(self.url):
            return _registered(self._client.get_model_version(model_name, version))

    def versions(self) -> list[RegisteredVersion]:
        """Every version that Modelyard registered, of every model."""
        found: list[RegisteredVersion] = []
        token: str | None = None
        while True:
            with _translated(self.url):
                page = self._client.search_model_versions(max_results=200, page_token=token)
            found += [_registered(version) for version in page if "modelyard.artifact" in version.tags]
            token = page.token
            if not token:
                return found

    # -- details --------------------------------------------------------------------------------------

    def _experiment_id(self, name: str) -> str:
        if name not in self._experiments:
            self._experiments[name] = self._find_experiment(name)
        return self._experiments[name]

    def _find_experiment(self, name: str) -> str:
        known = self._client.get_experiment_by_name(name)
        if known:
            return known.experiment_id
        from mlflow.exceptions import MlflowException

        try:
            return self._client.create_experiment(name)
        except MlflowException as failure:
            if failure.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return self._find_experiment(name)  # another process was faster

    def _ensure_model(self, model_name: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(model_name)
        except MlflowException as failure:
            if failure.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _version_of(self, model_name: str, artifact: ArtifactRef) -> str | None:
        query = f"name = '{model_name}' and tags.`modelyard.digest` = '{artifact.digest}'"
        with _translated(self.url):
            found = self._client.search_model_versions(query)
        return str(max(int(version.version) for version in found)) if found else None


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` -> ``{"a.b": 1}``."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value}
    return flat


def _param_name(key: str) -> str:
    """MLflow refuses other signs, such as the ``*`` that stands for every column."""
    return re.sub(r"[^\w\-. :/]", "_", key)


def _version_tags(artifact: ArtifactRef, verdict: ArtifactRef, origin: Origin) -> dict[str, str]:
    tags = {
        "modelyard.artifact": artifact.model_dump_json(),
        "modelyard.digest": artifact.digest,
        "modelyard.verdict": verdict.model_dump_json(),
        "modelyard.registered_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if origin.flow_run_id:
        tags["prefect.flow_run_id"] = origin.flow_run_id
    return tags


def _registered(version: Any) -> RegisteredVersion:
    tags = version.tags
    if "modelyard.artifact" not in tags:
        raise NotFound(f"version {version.version} of {version.name} was not registered by Modelyard")
    return RegisteredVersion(
        model_name=version.name,
        version=str(version.version),
        artifact=ArtifactRef.model_validate_json(tags["modelyard.artifact"]),
        verdict=ArtifactRef.model_validate_json(tags["modelyard.verdict"]),
        mlflow_run_id=version.run_id or None,
        flow_run_id=tags.get("prefect.flow_run_id"),
    )


@contextmanager
def _translated(url: str) -> Generator[None]:
    """Turn mlflow's exceptions into ours."""
    from mlflow.exceptions import MlflowException, RestException
    from requests.exceptions import RequestException

    try:
        yield
    except RestException as failure:
        if failure.error_code == "RESOURCE_DOES_NOT_EXIST" or "not found" in str(failure):
            raise NotFound(f"MLflow at {url}: {failure.message}") from failure
        kind = TrackerUnavailable if failure.get_http_status_code() in (408, 429, *range(500, 600)) else PermanentError
        raise kind(f"MLflow at {url}: {failure.message}") from failure
    except (MlflowException, RequestException) as failure:
        raise TrackerUnavailable(f"MLflow at {url}: {failure}") from failure
