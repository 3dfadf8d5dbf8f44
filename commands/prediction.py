"""Asking the endpoint, as any client would: one Open Inference Protocol request over HTTP."""

from __future__ import annotations

import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Catalog
from modelyard.datasets import Dataset
from modelyard.errors import EndpointUnavailable, PermanentError
from modelyard.settings import Settings

REQUEST_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Raw feature rows (n, width), and their true labels where they are known."""

    values: np.ndarray
    truths: list[Any]


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What the endpoint answered, and which version it was. A regression's answers are numbers without probabilities."""

    labels: list[Any]
    probabilities: list[float]
    truths: list[Any]
    version: str
    digest: str
    request_id: str
    milliseconds: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def held_out_rows(catalog: Catalog, dataset: ArtifactRef, count: int) -> Rows:
    """The first rows of a data set's test split, which no training has seen."""
    with tempfile.TemporaryDirectory(prefix="modelyard-rows-") as scratch:
        opened = Dataset.fetch(catalog, dataset, Path(scratch), ["test"])
        frame = next(opened.frames("test", count))
    return Rows(values=opened.transform.rows(frame), truths=frame[opened.target.column].tolist())


def ask(settings: Settings, model_name: str, rows: Rows) -> Prediction:
    """One inference request.

    Raises:
        EndpointUnavailable: no answer within the bound, or the endpoint is overloaded.
        PermanentError: it refused the request; carries its sentence.
    """
    url = f"{settings.serving_url}/v2/models/{model_name}/infer"
    tensor = {"name": "features", "shape": list(rows.values.shape), "datatype": "FP64", "data": rows.values.tolist()}
    started = time.monotonic()
    try:
        response = httpx.post(
            url,
            json={"inputs": [tensor]},
            headers=settings.endpoint_headers,
            timeout=REQUEST_SECONDS,
            trust_env=False,
            verify=settings.endpoint_trust,
        )
    except httpx.HTTPError as failure:
        raise EndpointUnavailable(f"{url}: {failure or type(failure).__name__}; see `modelyard status`") from failure
    milliseconds = (time.monotonic() - started) * 1000
    if response.status_code != 200:
        raise PermanentError(f"{url}: HTTP {response.status_code}: {response.text[:300]}")
    outputs = {output["name"]: output["data"] for output in response.json()["outputs"]}
    return Prediction(
        labels=_told(outputs, rows.values),
        probabilities=[] if "tag" in outputs else outputs.get("probability", []),
        truths=rows.truths,
        version=response.headers["Modelyard-Model-Version"],
        digest=response.headers["Modelyard-Artifact-Digest"],
        request_id=response.headers["Modelyard-Request-Id"],
        milliseconds=milliseconds,
    )


def _told(outputs: dict[str, list[Any]], rows: np.ndarray) -> list[Any]:
    """What an answer says in one word or number; of a text's tags how many are those of a span."""
    if "tag" in outputs:
        here = rows >= 0
        inside = (np.reshape(outputs["tag"], rows.shape) > 0) & here
        return [f"{some} of {whole} tokens in spans" for some, whole in zip(inside.sum(1), here.sum(1), strict=True)]
    if "embedding" in outputs:
        return ["a vector"]
    return outputs["label"] if "label" in outputs else outputs["value"]
