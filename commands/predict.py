"""`modelyard predict`: ask the endpoint for answers, about rows of a file or of the held-out split."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import httpx
import pandas as pd
import typer
from rich.console import Console
from rich.table import Table

from commands.prediction import REQUEST_SECONDS, Rows, ask, held_out_rows
from modelyard.catalog import Catalog
from modelyard.errors import DataError, EndpointUnavailable, NotFound
from modelyard.model_package import TRANSFORM_FILE
from modelyard.settings import Settings, load_settings
from modelyard.storage import Store
from modelyard.transform import read_row_transform


def predict(
    model: Annotated[str, typer.Argument(help="Name of the model on the endpoint.")] = "digits",
    file: Annotated[
        Path | None, typer.Argument(help="CSV or Parquet with the feature columns; without it, held-out rows.")
    ] = None,
    rows: Annotated[int, typer.Option(help="How many rows to ask about.", min=1, max=1000)] = 5,
) -> None:
    """Ask the endpoint for predictions, and show which version answered."""
    settings = load_settings()
    asked = _rows_of_file(settings, model, file, rows) if file else _held_out(settings, model, rows)
    answer = ask(settings, model, asked)
    likely = ["probability"] if answer.probabilities else []
    table = Table("row", "label" if likely else "value", *likely, *(["truth"] if answer.truths else []))
    for number, label in enumerate(answer.labels):
        probability = [f"{answer.probabilities[number]:.4f}"] if likely else []
        truth = [str(answer.truths[number])] if answer.truths else []
        table.add_row(str(number), str(label), *probability, *truth)
    console = Console(soft_wrap=True, highlight=False)
    console.print(table)
    console.print(f"{model} version {answer.version}, artifact {answer.digest}")
    console.print(
        f"request {answer.request_id}, {answer.milliseconds:.1f} ms; `modelyard trace {answer.digest[:12]}` walks back"
    )


def _held_out(settings: Settings, model: str, count: int) -> Rows:
    """Rows of the test split of the data set that the served model was made from."""
    catalog = Catalog(Store(settings))
    served = catalog.resolve(_served_digest(settings, model))
    return held_out_rows(catalog, catalog.resolve(catalog.manifest(served).content.inputs["dataset"]), count)


def _rows_of_file(settings: Settings, model: str, file: Path, count: int) -> Rows:
    if not file.is_file():
        raise NotFound(f"{file}: no such file")
    frame = (pd.read_parquet(file) if file.suffix == ".parquet" else pd.read_csv(file)).head(count)
    catalog = Catalog(Store(settings))
    served = catalog.resolve(_served_digest(settings, model))
    transform = read_row_transform(catalog.read(served, TRANSFORM_FILE))
    try:
        return Rows(values=transform.rows(frame), truths=[])
    except DataError as failure:
        raise DataError(f"{file}: {failure}") from None


def _served_digest(settings: Settings, model: str) -> str:
    return _metadata(settings, model).headers["Modelyard-Artifact-Digest"]


def _metadata(settings: Settings, model: str) -> httpx.Response:
    """What the endpoint says of a model; its headers name the version and artifact that serve."""
    url = f"{settings.serving_url}/v2/models/{model}"
    try:
        response = httpx.get(
            url,
            headers=settings.endpoint_headers,
            timeout=REQUEST_SECONDS,
            trust_env=False,
            verify=settings.endpoint_trust,
        )
    except httpx.HTTPError as failure:
        raise EndpointUnavailable(f"{url}: {failure or type(failure).__name__}; see `modelyard status`") from failure
    if response.status_code == 404:
        raise NotFound(f"the endpoint serves no model {model!r}; `modelyard run` rolls one out")
    return response
