"""`modelyard run`: trigger a lifecycle, follow it, ask the endpoint for a prediction, say where everything is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from commands import environment
from commands.prediction import Prediction, ask, held_out_rows
from modelyard.catalog import Catalog
from modelyard.errors import PermanentError
from modelyard.settings import Settings, load_settings
from modelyard.storage import Store

# Bundled preset -> folder of its sample data in the bucket.
SAMPLES = {"digits": "raw/digits", "text": "raw/topics"}
ASKED_ROWS = 10  # of the test split, of the version that serves in the end


class RunFailed(PermanentError):
    """A flow run did not end well."""


def run(
    preset: Annotated[str, typer.Argument(help="A preset's name, or path or s3:// URI of a YAML file.")] = "digits",
    dataset_uri: Annotated[str, typer.Option("--dataset", help="Raw data, s3://bucket/folder/*.parquet.")] = "",
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="One key of the preset: train.max_epochs=5. May be repeated.")
    ] = None,
    deployment: Annotated[
        str,
        typer.Option(
            help="The deployment to trigger: lifecycle/..., tune/..., or train/... for a stage and those before it."
        ),
    ] = "lifecycle/digits",
    timeout: Annotated[float, typer.Option(help="Seconds to follow the run; it goes on without us.", min=1)] = 3600,
) -> None:
    """Run the whole lifecycle through the worker, and follow it to a served model; or one stage, by its deployment."""
    settings = load_settings()
    environment.apply(settings)
    console = Console(soft_wrap=True, highlight=False)
    store = Store(settings)
    _check(preset, dataset_uri, overrides or [], store, deployment)
    preset = within_reach(preset, store)
    if preset in SAMPLES and not dataset_uri:
        _place_sample(preset, store, console)
    from commands.following import follow  # imports Prefect: 2 s that a typing error need not wait for

    parameters = {"preset": preset, "dataset_uri": dataset_uri, "overrides": overrides or []}
    outcome = follow(settings, deployment, parameters, timeout, console)
    if outcome.problem:
        raise RunFailed(outcome.problem)
    report = outcome.result
    if "stages" not in report:  # a flow of one stage: nothing serves because of it
        console.print(f"{report['stage']:12} {report['headline']}")
        console.print(f"flow run     {outcome.flow_run_url}\nMLflow run   {outcome.mlflow_run_url}")
        console.print(f"artifact     {report['ref']['uri']}")
        if "preset_uri" in report:
            console.print(f"preset       {report['preset_uri']}")
        if not report.get("lifecycle"):
            return
        report = report["lifecycle"]  # a tuning that went on with what it found
    prediction = _predict(settings, store, report)
    _write_last_run(settings, {**report, "seconds": round(outcome.seconds, 2), "prediction": prediction.as_json()})
    _conclude(console, settings, report, prediction, outcome.flow_run_url, outcome.mlflow_run_url)


def _check(preset: str, dataset_uri: str, overrides: Sequence[str], store: Store, deployment: str) -> None:
    """Refuse a wrong parameter here, before a run is created for it."""
    from modelyard.presets import load_preset, require_lifecycle, require_tuning

    given = [f"dataset_uri={dataset_uri}"] if dataset_uri else []
    config = load_preset(preset, store, [*overrides, *given])
    if deployment.startswith("lifecycle/"):
        require_lifecycle(config)
    if deployment.startswith("tune/"):
        require_tuning(config)


def within_reach(preset: str, store: Store) -> str:
    """A preset file of this machine, put where any worker can read it; others are reached by name or URI already."""
    path = Path(preset)
    if preset.startswith("s3://") or not path.is_file():
        return preset
    body = path.read_bytes()
    uri = f"{store.root}/presets/{hashlib.sha256(body).hexdigest()[:16]}.yaml"
    store.put_new(uri, body)
    return uri


def _place_sample(preset: str, store: Store, console: Console) -> None:
    """A bundled preset's data as a user would have it in a bucket, unless something is there."""
    folder = f"{store.root}/{SAMPLES[preset]}"
    if store.last(folder):
        return
    from modelyard import sample_data  # scikit-learn: only when it is needed

    files = sample_data.digits_parquet() if preset == "digits" else sample_data.topics_jsonl()
    for name, body in files:
        store.put(f"{folder}/{name}", body)
    console.print(f"placed the sample data set: {len(files)} files in {folder}")


def _told(prediction: Prediction) -> str:
    """What was answered about the held-out rows: of classes how many are right and which are not, else the first."""
    answers = list(zip(prediction.labels, prediction.truths, strict=False))
    if not prediction.probabilities or not answers:
        truth = f", the truth is {prediction.truths[0]}" if prediction.truths else ""
        return f"{prediction.labels[0]}{truth}"
    wrong = [f"{truth} taken for {label}" for label, truth in answers if label != truth]
    said = f"{len(answers) - len(wrong)} of {len(answers)} held-out rows right"
    return f"{said}; {', '.join(wrong)}" if wrong else said


def _predict(settings: Settings, store: Store, report: dict[str, Any]) -> Prediction:
    dataset = Catalog(store).resolve(report["artifacts"]["dataset"]["digest"])
    rows = held_out_rows(Catalog(store), dataset, count=ASKED_ROWS)
    return ask(settings, report["model_name"], rows)


def _write_last_run(settings: Settings, report: dict[str, Any]) -> None:
    path = settings.home / "last-run.json"
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(report, indent=1) + "\n")
    partial.replace(path)


def _conclude(
    console: Console, settings: Settings, report: dict[str, Any], prediction: Prediction, flow_url: str, mlflow_url: str
) -> None:
    table = Table("model", *report["metrics"]["float"], title=f"{report['model_name']} {report['model_version']}")
    for form, scores in report["metrics"].items():
        table.add_row(form, *(f"{value:.4f}" for value in scores.values()))
    console.print(table)
    console.print(f"flow run     {flow_url}")
    console.print(f"MLflow run   {mlflow_url}")
    console.print(f"endpoint     {settings.serving_url}/v2/models/{report['model_name']}")
    console.print(f"prediction   {_told(prediction)} (version {prediction.version}, {prediction.milliseconds:.1f} ms)")
    console.print(f"all of it    {settings.home / 'last-run.json'}")
