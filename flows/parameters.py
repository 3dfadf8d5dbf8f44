"""The parameters that flows share: flat, bounded and explained, because the Prefect UI makes a form of them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from modelyard.presets import LifecycleConfig, load_preset
from tasks.recording import Trail
from tasks.session import session

Preset = Annotated[
    str,
    Field(
        description="Name of a preset (digits), or path or s3:// URI of a YAML file with the whole configuration",
        min_length=1,
        json_schema_extra={"position": 0},
    ),
]
DatasetUri = Annotated[
    str,
    Field(
        description="Where the raw data lies, s3://bucket/folder/*.parquet; empty: the preset's",
        json_schema_extra={"position": 1},
    ),
]
MaxEpochs = Annotated[
    int,
    Field(
        description="Limit on training epochs; 0: the preset's",
        ge=0,
        le=100_000,
        json_schema_extra={"position": 2},
    ),
]
Ranks = Annotated[
    int,
    Field(description="Training processes; 0: the preset's", ge=0, le=64, json_schema_extra={"position": 3}),
]
MinScore = Annotated[
    float,
    Field(
        description="Lowest score on the test split that may be served; 0: the preset's",
        ge=0,
        le=1,
        json_schema_extra={"position": 4},
    ),
]
Overrides = Annotated[
    list[str],
    Field(
        description="Single keys of the preset, as dotted.key=value: train.optimizer.learning_rate=0.01",
        json_schema_extra={"position": 9},
    ),
]
ParentRun = Annotated[
    str,
    Field(
        description="MLflow run to nest below; empty for a stage that runs alone",
        json_schema_extra={"position": 10},
    ),
]


def artifact_name(what: str) -> object:
    """Annotation of a parameter that names an artifact."""
    return Field(
        description=f"Digest or URI of {what}; empty: what this preset gives, found or made",
        json_schema_extra={"position": 5},
    )


def load_config(preset: str, dataset_uri: str, overrides: list[str]) -> LifecycleConfig:
    """The configuration a flow run asks for.

    Raises:
        ConfigError: names the field that is wrong.
    """
    given = [f"dataset_uri={dataset_uri}"] if dataset_uri else []
    return load_preset(preset, session().store, [*overrides, *given])


def trail_of(config: LifecycleConfig, parent_run: str) -> Trail:
    """Where the records of a stage belong."""
    return Trail(model_name=config.model_name, parent_run_id=parent_run)
