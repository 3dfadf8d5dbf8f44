"""The OpenAPI 3.1 document of what this endpoint serves now: paths, bodies, and every status an answer may have."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from modelyard.serve.datatypes import DATATYPES
from modelyard.serve.protocol_mlflow import SHAPES
from modelyard.serve.protocol_v2 import INPUT_NAME

Json = dict[str, Any]

_NUMBERS: Json = {"type": "array", "items": {"type": "number"}}
_ROWS: Json = {"type": "array", "items": {"anyOf": [{"type": "number"}, _NUMBERS]}}
# Raw values by column name: numbers, or texts, dates and gaps where the model has such columns.
_VALUE: Json = {"anyOf": [{"type": "number"}, {"type": "string"}, {"type": "null"}]}
_VALUES: Json = {"type": "array", "items": _VALUE}
_RAW_ROWS: Json = {"type": "array", "items": {"anyOf": [_VALUE, _VALUES]}}
_RECORDS: Json = {"type": "array", "items": {"type": "object", "additionalProperties": _VALUE}}
_TEXT: Json = {"type": "string", "minLength": 1}
_TOKENS: Json = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}
_EMBEDDING: Json = {
    "type": "object",
    "required": ["model", "input"],
    "properties": {
        "model": {"type": "string", "minLength": 1},
        "input": {"anyOf": [_TEXT, {"type": "array", "minItems": 1, "items": _TEXT}, _TOKENS,
                            {"type": "array", "minItems": 1, "items": _TOKENS}]},
        "encoding_format": {"enum": ["float", "base64"]},
        "dimensions": {"type": "integer", "minimum": 1},
        "user": {"type": "string"},
    },
}  # fmt: skip
_PARAMETERS: Json = {"type": "object"}
_REFUSALS = {
    400: "something in the request does not fit; the sentence says what",
    401: "the route needs a key",
    403: "the key is not for such requests",
    404: "no such model, version or path",
    405: "another verb",
    408: "the body did not arrive in time",
    413: "the body is too large, plain or decompressed",
    415: "another content type or encoding",
    429: "too much is waiting: try again after Retry-After",
    503: "nobody can answer now: try again after Retry-After",
    504: "no answer in time",
}
_READING = (401, 403, 404, 405, 503)
_REVISION: Json = {
    "name": "revision",
    "in": "query",
    "description": "One that is there; without it the newest is looked for",
    "schema": {"type": "integer", "minimum": 0},
}
_INFERRING = (400, 401, 403, 404, 405, 408, 413, 415, 429, 503, 504)


def document(version: str, models: Mapping[str, Iterable[str]], *, reads_text: bool = False) -> Json:
    """The whole document.

    Args:
        models: versions of each model served now; they become the admitted values of the paths' parameters.
        reads_text: whether some model takes texts, or tokens as two tensors.
    """
    numbers = sorted({number for versions in models.values() for number in versions})
    name, number = _parameter("model", list(models)), _parameter("version", numbers)
    of_model, of_version = "/v2/models/{model}", "/v2/models/{model}/versions/{version}"
    return {
        "openapi": "3.1.0",
        "info": {"title": "Modelyard endpoint", "version": version},
        "paths": {
            **{path: _get("Is it alive?") for path in ("/livez", "/v2/health/live")},
            **{path: _get("Should it get requests?") for path in ("/readyz", "/v2/health/ready", "/ping", "/health")},
            "/": _get("Models and routes"),
            "/openapi.json": _get("This document"),
            "/version": _get("Version of Modelyard", "text/plain"),
            "/metrics": _get("Metrics for Prometheus", "text/plain"),
            "/v2": _get("Server metadata"),
            of_model: _get("Model metadata", parameters=[name]),
            of_version: _get("Metadata of a version", parameters=[name, number]),
            f"{of_model}/ready": _get("Can a worker of the model answer?", parameters=[name]),
            f"{of_version}/ready": _get("Can a worker of the version answer?", parameters=[name, number]),
            f"{of_model}/infer": _infer("Open Inference Protocol v2", [name]),
            f"{of_version}/infer": _infer("Open Inference Protocol v2, one version", [name, number]),
            "/invocations": _score("MLflow scoring, where one model is served", []),
            "/invocations/{model}": _score("MLflow scoring", [name]),
            "/v1/models": _get("Models, as OpenAI's clients ask"),
            "/v1/models/{model}": _get("One of them", parameters=[name]),
            "/v1/embeddings": _embed(),
            "/admin/status": _guarded("get", "Revision, versions, workers", 200),
            "/admin/notify": _guarded("post", "Look at the bucket now", 202, [_REVISION]),
        },
        "components": {
            "schemas": _schemas(reads_text),
            "responses": {str(status): _refusal(meaning) for status, meaning in _REFUSALS.items()},
            "securitySchemes": {"admin": {"type": "http", "scheme": "bearer"}},
        },
    }


def _schemas(reads_text: bool) -> Json:
    error = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
    return {**_inference_schemas(reads_text), **_scoring_schemas(), "EmbeddingRequest": _EMBEDDING, "Error": error}


def _inference_schemas(reads_text: bool) -> Json:
    tensor = {
        "type": "object",
        "required": ["name", "shape", "datatype"],
        "properties": {
            "name": {"type": "string"} if reads_text else {"const": INPUT_NAME},
            "shape": {
                "type": "array",
                "items": {"type": "integer", "minimum": 1},
                "minItems": 1 if reads_text else 2,
                "maxItems": 2,
            },
            "datatype": {"enum": [*DATATYPES, *(["BYTES"] if reads_text else [])]},
            "data": _RAW_ROWS if reads_text else _ROWS,
            "parameters": _PARAMETERS,
        },
    }
    output = {
        "type": "object",
        "required": ["name", "shape", "datatype"],
        "properties": {
            "name": {"type": "string"},
            "shape": {"type": "array", "items": {"type": "integer"}},
            "datatype": {"type": "string"},
            "data": {"type": "array"},
            "parameters": _PARAMETERS,
        },
    }
    asked = {
        "type": "object",
        "required": ["name"],
        "properties": {"name": {"type": "string"}, "parameters": _PARAMETERS},
    }
    return {
        "InferRequest": {
            "type": "object",
            "required": ["inputs"],
            "properties": {
                "id": {"type": "string"},
                "inputs": {"type": "array", "items": tensor, "minItems": 1, "maxItems": 2 if reads_text else 1},
                "outputs": {"type": "array", "items": asked},
                "parameters": _PARAMETERS,
            },
        },
        "InferResponse": {
            "type": "object",
            "required": ["model_name", "model_version", "id", "outputs"],
            "properties": {"outputs": {"type": "array", "items": output}},
        },
    }


def _scoring_schemas() -> Json:
    split = {
        "type": "object",
        "required": ["columns", "data"],
        "properties": {"columns": {"type": "array", "items": {"type": "string"}}, "data": _RAW_ROWS},
    }
    columns = {"type": "object", "additionalProperties": _VALUES}
    shapes = dict(
        zip(SHAPES, (split, _RECORDS, {"anyOf": [_RECORDS, _RAW_ROWS]}, {"anyOf": [columns, _RAW_ROWS]}), strict=True)
    )
    return {
        "ScoringRequest": {
            "oneOf": [
                {"type": "object", "required": [name], "properties": {name: shape}} for name, shape in shapes.items()
            ]
        },
        "ScoringResponse": {
            "type": "object",
            "required": ["predictions"],
            "properties": {"predictions": {"type": "array", "items": {"type": "object"}}},
        },
    }


def _get(summary: str, kind: str = "application/json", parameters: Collection[Json] = ()) -> Json:
    answer = {"description": "yes", "content": {kind: {}}}
    return {"get": _operation(summary, {"200": answer}, _READING, parameters)}


def _infer(summary: str, parameters: Iterable[Json]) -> Json:
    raw = {"type": "string", "format": "binary"}
    body = {"application/json": {"schema": _ref("InferRequest")}, "application/octet-stream": {"schema": raw}}
    answer = {"application/json": {"schema": _ref("InferResponse")}, "application/octet-stream": {"schema": raw}}
    return _post(summary, body, answer, parameters)


def _score(summary: str, parameters: Iterable[Json]) -> Json:
    body = {"application/json": {"schema": _ref("ScoringRequest")}, "text/csv": {"schema": {"type": "string"}}}
    return _post(summary, body, {"application/json": {"schema": _ref("ScoringResponse")}}, parameters)


def _embed() -> Json:
    body = {"application/json": {"schema": _ref("EmbeddingRequest")}}
    return _post("Embeddings, as OpenAI's clients ask", body, {"application/json": {}}, [])


def _post(summary: str, body: Json, answer: Json, parameters: Iterable[Json]) -> Json:
    answers = {"200": {"description": "predictions", "content": answer}}
    operation = _operation(summary, answers, _INFERRING, parameters)
    return {"post": operation | {"requestBody": {"required": True, "content": body}}}


def _guarded(verb: str, summary: str, status: int, parameters: Collection[Json] = ()) -> Json:
    answer = {"description": "done", "content": {"application/json": {}}}
    refusals = (400, 401, 403, 405) if parameters else (401, 403, 405)
    operation = _operation(summary, {str(status): answer}, refusals, parameters)
    return {verb: operation | {"security": [{"admin": []}]}}


def _operation(summary: str, answers: Json, refusals: Iterable[int], parameters: Iterable[Json]) -> Json:
    refused = {str(status): {"$ref": f"#/components/responses/{status}"} for status in refusals}
    return {"summary": summary, "parameters": list(parameters), "responses": answers | refused}


def _refusal(meaning: str) -> Json:
    return {"description": meaning, "content": {"application/json": {"schema": _ref("Error")}}}


def _parameter(name: str, values: list[str]) -> Json:
    """A part of the path; what is served now where anything is."""
    schema: Json = {"type": "string", "minLength": 1}
    return {"name": name, "in": "path", "required": True, "schema": schema | ({"enum": values} if values else {})}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}
