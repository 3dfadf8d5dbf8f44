"""Open Inference Protocol v2, JSON over HTTP: requests to arrays, answers to bytes. Pure; knows no socket.

A model takes one tensor `features` of raw feature values, columns in the order its metadata names (the fitted
transform is applied behind the endpoint), and gives the task's answers and the raw `outputs`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from modelyard.errors import DataError
from modelyard.serve.wire import Tensor
from modelyard.serve.workers import WorkerInfo

INPUT_NAME = "features"
# Kinds of JSON number each datatype admits: integers never take fractions.
_DATATYPES = {
    "FP32": "iuf",
    "FP64": "iuf",
    **{f"{sign}INT{bits}": "iu" for sign in ("", "U") for bits in (8, 16, 32, 64)},
}


class BadRequestError(DataError):
    """The request does not say what the protocol wants; the sentence goes to the client."""


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A parsed request.

    Attributes:
        id: the client's own id, to be echoed.
        rows: raw feature values (n, width), float32 where the client says FP32, else float64.
        outputs: the outputs it asks for, or None for all.
    """

    id: str | None
    rows: np.ndarray
    outputs: list[str] | None


def parse_infer(body: bytes) -> InferRequest:
    """A request body as arrays.

    Raises:
        BadRequestError: says what is wrong with it.
    """
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as failure:
        raise BadRequestError(f"the body is not JSON: {failure}") from None
    if not isinstance(document, dict):
        raise BadRequestError("the body must be a JSON object with 'inputs'")
    client_id = document.get("id")
    if client_id is not None and not isinstance(client_id, str):
        raise BadRequestError("'id' must be a string")
    inputs = document.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise BadRequestError(f"'inputs' must be a list of exactly one tensor, named {INPUT_NAME!r}")
    return InferRequest(client_id, _parse_rows(inputs[0]), _parse_outputs(document.get("outputs")))


def check_fits(request: InferRequest, model: str, info: WorkerInfo) -> None:
    """Compare a request with what the model takes and gives.

    Raises:
        BadRequestError: another width, or an output the model does not have.
    """
    width = request.rows.shape[1]
    if width != info.width:
        raise BadRequestError(f"model {model!r} takes rows of {info.width} values, these have {width}")
    if request.outputs is not None:
        known = [name for name, _, _ in info.outputs]
        for name in request.outputs:
            if name not in known:
                raise BadRequestError(f"model {model!r} has no output {name!r}; it has {', '.join(known)}")


def format_answer(
    answers: Mapping[str, Tensor],
    info: WorkerInfo,
    *,
    model: str,
    version: str,
    request_id: str,
    wanted: Sequence[str] | None,
) -> bytes:
    """The response body, tensors flat in row-major order."""
    outputs = []
    for name, datatype, _ in info.outputs:
        if wanted is not None and name not in wanted:
            continue
        tensor = answers[name]
        if isinstance(tensor, list):
            outputs.append({"name": name, "datatype": datatype, "shape": [len(tensor)], "data": tensor})
        else:
            outputs.append({"name": name, "datatype": datatype, "shape": tensor.shape, "data": tensor.reshape(-1)})
    document = {"model_name": model, "model_version": version, "id": request_id, "outputs": outputs}
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def model_metadata(model: str, versions: Sequence[str], info: WorkerInfo) -> dict[str, Any]:
    return {
        "name": model,
        "versions": list(versions),
        "platform": "modelyard",
        "inputs": [
            {
                "name": INPUT_NAME,
                "datatype": "FP32",
                "shape": [-1, info.width],
                "parameters": {"columns": info.columns},
            }
        ],
        "outputs": [
            {"name": name, "datatype": datatype, "shape": [-1, columns] if columns else [-1]}
            for name, datatype, columns in info.outputs
        ],
    }


def _parse_outputs(outputs: Any) -> list[str] | None:
    if outputs is None or outputs == []:
        return None
    if not isinstance(outputs, list):
        raise BadRequestError("'outputs' must be a list")
    names = [output.get("name") if isinstance(output, dict) else None for output in outputs]
    texts = [name for name in names if isinstance(name, str)]
    if len(texts) < len(names):
        raise BadRequestError("each of 'outputs' must be an object with a 'name'")
    return texts


def _parse_rows(tensor: dict[str, Any]) -> np.ndarray:
    name, datatype = tensor.get("name"), tensor.get("datatype")
    if name != INPUT_NAME:
        raise BadRequestError(f"the input must be named {INPUT_NAME!r}, not {name!r}")
    if not isinstance(datatype, str) or datatype not in _DATATYPES:
        raise BadRequestError(f"datatype {datatype!r} is not one of {', '.join(_DATATYPES)}")
    num_rows, width = _parse_shape(tensor.get("shape"))
    values = _numbers(tensor.get("data"), datatype)
    if values.shape != (num_rows, width):
        if values.ndim != 1 or values.size != num_rows * width:
            raise BadRequestError(f"shape [{num_rows}, {width}] does not fit data of shape {list(values.shape)}")
        values = values.reshape(num_rows, width)
    with np.errstate(over="ignore"):  # a value beyond float32 becomes infinite, and is refused as such
        rows = values.astype(np.float32 if datatype == "FP32" else np.float64, copy=False)
    # One pass: the sum is finite only if all values are, but for an overflow that the second look settles.
    if not math.isfinite(rows.sum(dtype=np.float64)) and not np.isfinite(rows).all():
        raise BadRequestError("the data holds values that are not finite")
    return rows


def _parse_shape(shape: Any) -> tuple[int, int]:
    if not isinstance(shape, list) or len(shape) != 2 or any(type(size) is not int for size in shape):
        raise BadRequestError("'shape' must be two integers, [rows, values per row]")
    if shape[0] < 1 or shape[1] < 1:
        raise BadRequestError(f"shape {shape} has no values")
    return shape[0], shape[1]


def _numbers(data: Any, datatype: str) -> np.ndarray:
    if not isinstance(data, list):
        raise BadRequestError("'data' must be a list")
    try:
        values = np.asarray(data)
    except (ValueError, OverflowError):  # ragged, or nested beyond what an array can be
        raise BadRequestError("'data' must be a flat list, or nested as the shape says") from None
    if values.dtype.kind not in _DATATYPES[datatype]:
        raise BadRequestError(f"'data' holds something else than {datatype} numbers")
    return values
