"""Tracking on the real MLflow server."""

from __future__ import annotations

from uuid import uuid4

import pytest
from mlflow.tracking import MlflowClient

from modelyard.errors import NotFound, TrackerUnavailable
from modelyard.settings import Settings
from modelyard.tracking import Point, Tracker, flatten
from tests.conftest import Installation


@pytest.fixture
def tracker(stack: Installation) -> Tracker:
    return Tracker(stack.settings)


@pytest.fixture
def experiment() -> str:
    return f"test-{uuid4().hex[:8]}"


def test_config_tree_becomes_flat_parameters(tracker: Tracker, experiment: str):
    """Nested keys are dotted; signs that MLflow refuses in a name do not stop a run."""
    run_id = tracker.start_run(experiment, "run")
    tracker.log_params(run_id, {"train": {"optimizer": {"name": "adam"}}, "ranges": {"*": [0, 16]}})
    assert MlflowClient().get_run(run_id).data.params == {"train.optimizer.name": "adam", "ranges._": "[0, 16]"}
    assert flatten({"a": {}}) == {"a": {}}


def test_many_points_arrive_in_order(tracker: Tracker, experiment: str):
    """More points than one request takes are all there, at their steps."""
    run_id = tracker.start_run(experiment, "run")
    tracker.log_metrics(run_id, [Point("loss", 1 / (step + 1), step) for step in range(1500)])
    history = MlflowClient().get_metric_history(run_id, "loss")
    assert [metric.step for metric in history] == list(range(1500))


def test_buffered_points_are_sent_by_flush(tracker: Tracker, experiment: str):
    """Nothing of what was added is lost at the end."""
    run_id = tracker.start_run(experiment, "run")
    buffer = tracker.buffered_metrics(run_id)
    for step in range(5):
        buffer.add({"loss": 1.0, "accuracy": 0.5}, step)
    buffer.flush()
    assert len(MlflowClient().get_metric_history(run_id, "accuracy")) == 5


def test_runs_of_a_crashed_flow_are_ended_with_those_below_them(tracker: Tracker, experiment: str):
    """A run that a killed process left open is ended, its nested runs too, and nobody else's."""
    parent = tracker.start_run(experiment, "parent", tags={"prefect.flow_run_id": "dead"})
    child = tracker.start_run(experiment, "child", parent_run_id=parent, tags={"prefect.flow_run_id": "sub"})
    other = tracker.start_run(experiment, "other", tags={"prefect.flow_run_id": "alive"})
    assert set(tracker.end_runs_of("dead")) == {parent, child}
    status = {run_id: MlflowClient().get_run(run_id).info.status for run_id in (parent, child, other)}
    assert status == {parent: "KILLED", child: "KILLED", other: "RUNNING"}


def test_unknown_version_is_not_found(tracker: Tracker):
    """What is not registered is said to be missing, permanently."""
    assert tracker.version_by_alias("nobody", "champion") is None
    with pytest.raises(NotFound):
        tracker.version("nobody", "1")


def test_tracker_that_is_away_is_transient(settings: Settings, monkeypatch: pytest.MonkeyPatch):
    """No answer is an error that a task tries again, within a bound."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away = Tracker(settings.model_copy(update={"mlflow_tracking_uri": "http://127.0.0.1:9"}))
    with pytest.raises(TrackerUnavailable):
        away.start_run("any", "run")
