"""The parameters that flows share: flat, bounded and explained, because the Prefect UI makes a form of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from modelyard.presets import LifecycleConfig, load_preset
from modelyard.train import DeviceName, require_factory
from tasks.recording import Trail
from tasks.session import session


def explained(title: str, description: str, **bounds: Any) -> Any:
    """Annotation of a parameter: its label and its help on the form, and its bounds.

    Label and help go the long way round: Prefect, making the form, replaces those that the field itself has.
    """
    return Field(json_schema_extra={"title": title, "description": description}, **bounds)


def artifact_name(what: str) -> Any:
    """Annotation of a parameter that names an artifact."""
    return explained(
        what.capitalize(), "Digest, URI, model@alias or model/version; empty: what this preset gives, found or made"
    )


def model_name(title: str, purpose: str) -> Any:
    """Annotation of a parameter that names another trained model."""
    return explained(
        title, f"A trained model: digest, URI, model@alias or model/version; to {purpose}; empty: what the preset says"
    )


Preset = Annotated[
    str,
    explained(
        "Preset",
        "Name of a preset (digits), or path or s3:// URI of a YAML file with the whole configuration",
        min_length=1,
    ),
]
DatasetUri = Annotated[
    str, explained("Dataset URI", "Where the raw data lies, s3://bucket/folder/*.parquet; empty: where the preset says")
]
MaxEpochs = Annotated[
    int, explained("Max epochs", "Limit on training epochs, to 100,000; 0: the preset's", ge=0, le=100_000)
]
Ranks = Annotated[int, explained("Ranks", "Training processes, to 64; 0: the preset's", ge=0, le=64)]
Device = Annotated[
    Literal["preset", DeviceName],
    explained(
        "Device", "What training computes on; auto: accelerators where there are any; preset: what the preset says"
    ),
]
MinScore = Annotated[
    float,
    explained("Min score", "Lowest score on the test split that may be served, 0 to 1; 0: the preset's", ge=0, le=1),
]
Overrides = Annotated[
    list[str],
    explained("Overrides", "Single keys of the preset, as dotted.key=value: train.optimizer.learning_rate=0.01"),
]
ParentRun = Annotated[str, explained("Parent run", "MLflow run to nest below; empty for a stage that runs alone")]


def load_config(preset: str, dataset_uri: str, overrides: list[str]) -> LifecycleConfig:
    """The configuration a flow run asks for.

    Raises:
        ConfigError: names the field that is wrong.
    """
    given = [f"dataset_uri={dataset_uri}"] if dataset_uri else []
    config = load_preset(preset, session().store, [*overrides, *given])
    require_factory(config.train)
    return config


def trail_of(config: LifecycleConfig, parent_run: str) -> Trail:
    """Where the records of a stage belong."""
    return Trail(model_name=config.model_name, parent_run_id=parent_run)
