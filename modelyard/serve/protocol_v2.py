"""Open Inference Protocol v2: requests to arrays, answers to bytes. Pure; knows no socket.

A model takes one tensor `features` of raw feature values, columns in the order its metadata names (the fitted
transform is applied behind the endpoint), and gives the task's answers and the raw `outputs`. Tensors are JSON, or
raw bytes behind a JSON head (the protocol's binary tensor data extension) in either direction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import orjson
import simdjson

from modelyard.serve.answers import JSON, Headers
from modelyard.serve.bodies import BINARY, Head, refuse_kind
from modelyard.serve.datatypes import (
    BUFFER_DTYPES,
    DATATYPES,
    INFERENCE,
    BadRequestError,
    Datatype,
    as_rows,
    from_binary,
    parse_object,
    to_binary,
)
from modelyard.serve.unread import MOST_BYTES
from modelyard.serve.wire import Tensor
from modelyard.serve.worker_info import WorkerInfo
from modelyard.transform import TextTransform

INPUT_NAME = "features"
JSON_KIND = b"application/json"
EXTENSIONS = ["binary_tensor_data"]
REMEMBERED_BYTES = 2**10
PLAIN_KEYS = 4  # of a tensor: name, datatype, shape, data
PLAIN_BYTES = 2**20  # the parser keeps several times what it once parsed
_PARSER = simdjson.Parser()


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A parsed request.

    Attributes:
        id: the client's own id, to be echoed.
        rows: raw feature values (n, width), float32 where the client says FP32, else float64.
        outputs: the outputs it asks for and whether each shall be binary, or None for all.
        binary: whether outputs are binary where nothing else is said.
    """

    id: str | None
    rows: np.ndarray
    outputs: Mapping[str, bool] | None = None
    binary: bool = False


class OpenInference:
    """The dialect of `/v2/models/{model}/infer`."""

    def passes_on(self, body: bytes, head: Head, info: WorkerInfo) -> bool:
        """Whether the worker shall read a request: a short one, of plain numbers.

        Raises:
            HttpError: 415.
        """
        _require_kind(head)
        fits = head.head_bytes is None or 0 < head.head_bytes <= len(body)
        return fits and len(body) <= MOST_BYTES and info.transform is None

    def read(self, body: bytes, head: Head, model: str, info: WorkerInfo) -> InferRequest:
        """A request body as rows that the model takes.

        Raises:
            HttpError: 415.
            BadRequestError: says what is wrong with it.
        """
        _require_kind(head)
        if info.reads_text:
            from modelyard.serve.protocol_v2_text import read_texts  # it builds on this module

            return read_texts(body, head.head_bytes, model, info)
        request = parse_infer(body, head.head_bytes)
        check_fits(request, model, info)
        return request

    def write(
        self,
        answers: Mapping[str, Tensor],
        info: WorkerInfo,
        request: InferRequest,
        *,
        model: str,
        version: str,
        request_id: str,
    ) -> tuple[bytes, Headers]:
        """The response body, tensors flat in row-major order, and the headers that describe it."""
        content, head_bytes = written(answers, info, request, model=model, version=version, request_id=request_id)
        return content, self.describe_content(head_bytes)

    def describe_content(self, head_bytes: int | None) -> Headers:
        """The headers of a response whose JSON is so long and has binary data behind it, or is all."""
        if head_bytes is None:
            return [JSON]
        return [BINARY, (b"inference-header-content-length", b"%d" % head_bytes)]


def written(
    answers: Mapping[str, Tensor], info: WorkerInfo, request: InferRequest, *, model: str, version: str, request_id: str
) -> tuple[bytes, int | None]:
    """The response body, and the length of its JSON where binary data follow."""
    described: list[dict[str, Any]] = []
    raw: list[bytes] = []
    for name, datatype, _ in info.outputs:
        if request.outputs is None or name in request.outputs:
            is_binary = request.binary if request.outputs is None else request.outputs[name]
            described.append(_describe(name, datatype, answers[name], raw if is_binary else None))
    document = {"model_name": model, "model_version": version, "id": request.id or request_id, "outputs": described}
    content = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    return (b"".join([content, *raw]), len(content)) if raw else (content, None)


def parse_infer(body: bytes, head_bytes: int | None = None) -> InferRequest:
    """A request body as arrays.

    Args:
        head_bytes: length of the JSON where binary data follows it (`Inference-Header-Content-Length`).

    Raises:
        BadRequestError: says what is wrong with it.
    """
    if head_bytes is None:
        return _parse_plain(body) or _parse_any(body, None)
    if not 0 < head_bytes <= len(body):
        sentence = f"Inference-Header-Content-Length is {head_bytes}, the body has {len(body)} bytes"
        raise BadRequestError(sentence)
    return _parse_any(body[:head_bytes], memoryview(body)[head_bytes:])


def check_fits(request: InferRequest, model: str, info: WorkerInfo) -> None:
    """Compare a request with what the model takes and gives.

    Raises:
        BadRequestError: another width, or an output the model does not have.
    """
    width = request.rows.shape[1]
    if width != info.width:
        raise BadRequestError(f"model {model!r} takes rows of {info.width} values, these have {width}")
    check_outputs(request, model, info)


def check_outputs(request: InferRequest, model: str, info: WorkerInfo) -> None:
    """Compare the outputs that a request asks for with those that the model gives.

    Raises:
        BadRequestError: there is no such output.
    """
    if request.outputs is not None:
        known = [name for name, _, _ in info.outputs]
        for name in request.outputs:
            if name not in known:
                raise BadRequestError(f"model {model!r} has no output {name!r}; it has {', '.join(known)}")


def model_metadata(model: str, versions: Sequence[str], info: WorkerInfo) -> dict[str, Any]:
    inputs: list[dict[str, Any]] = [
        {"name": INPUT_NAME, "datatype": "FP32", "shape": [-1, info.width], "parameters": {"columns": info.columns}}
    ]
    if isinstance(info.transform, TextTransform):
        from modelyard.serve.protocol_v2_text import text_inputs  # it builds on this module

        inputs = text_inputs(info.transform)
    axes = [-1] if info.tags is None else [-1, -1]
    return {
        "name": model,
        "versions": list(versions),
        "platform": "modelyard",
        "inputs": inputs,
        "outputs": [
            {"name": name, "datatype": datatype, "shape": [*axes, columns] if columns else axes}
            for name, datatype, columns in info.outputs
        ],
    }


def _require_kind(head: Head) -> None:
    # Clients send binary data without a type, or with one of these two.
    if head.kind != JSON_KIND:
        refuse_kind(head, JSON_KIND, *([] if head.head_bytes is None else [BINARY[1]]))


def _describe(name: str, datatype: str, tensor: Tensor, raw: list[bytes] | None) -> dict[str, Any]:
    """One output; with ``raw`` its data goes there."""
    shape = [len(tensor)] if isinstance(tensor, list) else tensor.shape
    output: dict[str, Any] = {"name": name, "datatype": datatype, "shape": shape}
    if raw is None:
        output["data"] = tensor if isinstance(tensor, list) else tensor.reshape(-1)
    else:
        raw.append(to_binary(tensor))
        output["parameters"] = {"binary_data_size": len(raw[-1])}
    return output


def _parse_plain(body: bytes) -> InferRequest | None:
    """One tensor with flat JSON data and nothing unusual, at a quarter of the cost; None leaves it to `_parse_any`.

    simdjson copies a list of numbers straight into an array, without a Python object for each.
    """
    # Brackets of `inputs`, `shape` and `data` alone: nothing is nested, which `as_buffer` would flatten silently.
    if len(body) > PLAIN_BYTES or _has_many(body, b"[", 4):
        return None
    try:
        document: Any = _PARSER.parse(body)
        [tensor] = document["inputs"]
        # Of a key that is there twice each parser takes another.
        if len(document) > 1 + ("id" in document) or len(tensor) != PLAIN_KEYS or tensor["name"] != INPUT_NAME:
            return None
        datatype = DATATYPES[tensor["datatype"]]
        if datatype.buffer is None:
            return None
        num_rows, width = _parse_shape(tensor["shape"].as_list())
        values = np.frombuffer(tensor["data"].as_buffer(of_type=datatype.buffer), BUFFER_DTYPES[datatype.buffer])
        client_id = document.get("id")
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, BadRequestError):
        return None
    if len(values) != num_rows * width or not (client_id is None or isinstance(client_id, str)):
        return None
    return InferRequest(client_id, as_rows(values.reshape(num_rows, width), datatype))


def _has_many(body: bytes, sign: bytes, number: int) -> bool:
    """Whether a sign stands there so many times. `find` looks at many bytes at once, `count` at each."""
    at = -1
    for _ in range(number):
        at = body.find(sign, at + 1)
        if at < 0:
            return False
    return True


def _parse_any(head: bytes, raw: memoryview | None) -> InferRequest:
    """Any request the protocol admits, and a sentence for every other."""
    said = _said_before(head) if raw is not None and len(head) <= REMEMBERED_BYTES else _said(head)
    return InferRequest(said.id, _parse_rows(said.tensor, raw), said.outputs, said.binary)


@dataclass(frozen=True, slots=True)
class _Said:
    """What the JSON of a request says; its one tensor as it stands there."""

    id: str | None
    tensor: dict[str, Any]
    outputs: Mapping[str, bool] | None
    binary: bool


def _said(head: bytes) -> _Said:
    document = parse_object(head, INFERENCE)
    client_id = document.get("id")
    if client_id is not None and not isinstance(client_id, str):
        raise BadRequestError("'id' must be a string")
    inputs = document.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise BadRequestError(f"'inputs' must be a list of exactly one tensor, named {INPUT_NAME!r}")
    binary = parse_flag(document, "binary_data_output", otherwise=False)
    return _Said(client_id, inputs[0], parse_outputs(document.get("outputs"), binary), binary)


# Before binary data most clients say the same again and again.
_said_before = lru_cache(maxsize=256)(_said)


def parse_outputs(outputs: Any, binary: bool) -> dict[str, bool] | None:
    if outputs is None or outputs == []:
        return None
    if not isinstance(outputs, list):
        raise BadRequestError("'outputs' must be a list")
    wanted: dict[str, bool] = {}
    for output in outputs:
        if not isinstance(output, dict) or not isinstance(output.get("name"), str):
            raise BadRequestError("each of 'outputs' must be an object with a 'name'")
        wanted[output["name"]] = parse_flag(output, "binary_data", otherwise=binary)
    return wanted


def _parse_rows(tensor: dict[str, Any], raw: memoryview | None) -> np.ndarray:
    if (name := tensor.get("name")) != INPUT_NAME:
        raise BadRequestError(f"the input must be named {INPUT_NAME!r}, not {name!r}")
    return parse_matrix(tensor, raw)


def parse_matrix(tensor: dict[str, Any], raw: memoryview | None) -> np.ndarray:
    """A tensor's numbers (n, width), from its JSON or from the binary data that is its own."""
    datatype_name = tensor.get("datatype")
    if not isinstance(datatype_name, str) or datatype_name not in DATATYPES:
        raise BadRequestError(f"datatype {datatype_name!r} is not one of {', '.join(DATATYPES)}")
    datatype = DATATYPES[datatype_name]
    num_rows, width = _parse_shape(tensor.get("shape"))
    size = parse_parameters(tensor).get("binary_data_size")
    if size is not None:
        return as_rows(from_binary(_binary_data(tensor, size, raw), datatype, num_rows, width), datatype)
    if raw:
        raise BadRequestError(f"{len(raw)} bytes follow the JSON, but its tensor has no 'binary_data_size'")
    values = _numbers(tensor.get("data"), datatype)
    if values.shape != (num_rows, width):
        if values.ndim != 1 or values.size != num_rows * width:
            raise BadRequestError(f"shape [{num_rows}, {width}] does not fit data of shape {list(values.shape)}")
        values = values.reshape(num_rows, width)
    return as_rows(values, datatype)


def _binary_data(tensor: dict[str, Any], size: Any, raw: memoryview | None) -> memoryview:
    if raw is None:
        raise BadRequestError("'binary_data_size' needs the header Inference-Header-Content-Length")
    if "data" in tensor:
        raise BadRequestError("a tensor has either 'data' or 'binary_data_size', not both")
    if type(size) is not int or size != len(raw):
        raise BadRequestError(f"'binary_data_size' is {size!r}, but {len(raw)} bytes follow the JSON")
    return raw


def _parse_shape(shape: Any) -> tuple[int, int]:
    if not isinstance(shape, list) or len(shape) != 2 or any(type(size) is not int for size in shape):
        raise BadRequestError("'shape' must be two integers, [rows, values per row]")
    if shape[0] < 1 or shape[1] < 1:
        raise BadRequestError(f"shape {shape} has no values")
    return shape[0], shape[1]


def _numbers(data: Any, datatype: Datatype) -> np.ndarray:
    if not isinstance(data, list):
        raise BadRequestError("'data' must be a list")
    try:
        values = np.asarray(data)
    except (ValueError, OverflowError):  # ragged, or nested beyond what an array can be
        raise BadRequestError("'data' must be a flat list, or nested as the shape says") from None
    if values.dtype.kind not in datatype.kinds:
        raise BadRequestError(f"'data' holds something else than {datatype.name} numbers")
    return values


def parse_parameters(document: dict[str, Any]) -> dict[str, Any]:
    parameters = document.get("parameters", {})
    if not isinstance(parameters, dict):
        raise BadRequestError("'parameters' must be an object")
    return parameters


def parse_flag(document: dict[str, Any], name: str, *, otherwise: bool) -> bool:
    value = parse_parameters(document).get(name, otherwise)
    if not isinstance(value, bool):
        raise BadRequestError(f"parameter {name!r} must be true or false, not {value!r}")
    return value
