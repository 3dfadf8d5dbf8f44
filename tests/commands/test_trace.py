"""`modelyard trace` where a part of the way is missing. The whole way is walked in `tests/e2e/test_lifecycle.py`."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from commands.lineage import Step, Walk
from commands.main import app
from modelyard import request_ids
from modelyard.catalog import Catalog
from modelyard.settings import Settings
from modelyard.storage import Store
from modelyard.tracking import Tracker
from tests.serve.packages import publish_version, roll_out
from tests.serve.processes import free_port


@pytest.fixture
def walk(settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch) -> Walk:
    """Over the real store, with MLflow and Prefect away."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away = f"http://127.0.0.1:{free_port()}"
    alone = settings.model_copy(update={"mlflow_tracking_uri": away, "prefect_api_url": f"{away}/api"})
    return Walk(alone, Catalog(store), Tracker(alone))


def by_name(steps: list[Step]) -> dict[str, Step]:
    return {step.what: step for step in steps}


def test_a_response_is_traced_while_mlflow_is_away(walk: Walk, store: Store):
    """The revision in the bucket is enough to find what answered; each thing that cannot be known says why."""
    version = publish_version(store, "3")
    number = roll_out(store, "traced", version).number
    name = request_ids.prefix("traced", number, ("digits", "3"), "5c0ffee1") + "1"
    steps = by_name(list(walk.steps(name)))
    assert list(steps) == ["response", "endpoint revision", "registry version", "package", "verdict"]
    assert steps["endpoint revision"].facts["reason"] == "a test"
    assert "MLflow at" in steps["registry version"].missing[0]
    assert steps["package"].name == version.artifact.digest
    assert len(steps["package"].facts["signed by"]) == 1
    assert "no flow run was recorded" in steps["package"].missing


@pytest.mark.parametrize(
    ("revision", "model", "version", "words"),
    [
        (99, "digits", "3", "revisions/000000000099.json"),
        (1, "digits", "8", "does not name digits version 8"),
        (1, "nobody", "3", "does not name nobody version 3"),
    ],
)
def test_a_revision_that_does_not_tell_is_said(
    walk: Walk, store: Store, revision: int, model: str, version: str, words: str
):
    """A revision that is gone, or that never named the version, ends the way there with a sentence."""
    endpoint = f"gone-{revision}-{model}-{version}"
    roll_out(store, endpoint, publish_version(store, "3"))
    name = request_ids.prefix(endpoint, revision, (model, version), "5c0ffee1") + "1"
    steps = by_name(list(walk.steps(name)))
    assert words in steps["endpoint revision"].missing[0]


def test_an_altered_or_absent_artifact_is_said(walk: Walk, store: Store):
    """A manifest that is not what the revision promised is missing, and the rest of the way is still walked."""
    version = publish_version(store, "3")
    roll_out(store, "altered", version)
    store.delete([f"{version.artifact.uri}/manifest.json"])
    name = request_ids.prefix("altered", 1, ("digits", "3"), "5c0ffee1") + "1"
    steps = by_name(list(walk.steps(name)))
    assert "manifest.json" in steps["package"].missing[0]
    assert steps["verdict"].name == version.verdict.digest


def test_a_refused_request_has_no_version(walk: Walk, monkeypatch: pytest.MonkeyPatch):
    """Nobody answered it; as JSON that is an incomplete way, with exit status 0."""
    name = request_ids.prefix("default", 3, None, "5c0ffee1") + "a"
    shown = CliRunner().invoke(app, ["trace", name, "--json"])
    told = json.loads(shown.stdout)
    assert (shown.exit_code, told["complete"]) == (0, False)
    assert "refused before one was drawn" in told["steps"][0]["missing"][0]
    assert "1 missing" in CliRunner().invoke(app, ["trace", name]).output
