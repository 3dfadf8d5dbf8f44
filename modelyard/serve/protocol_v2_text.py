"""Open Inference Protocol v2 for a model that reads texts. Pure; knows no socket.

Such a model takes one of
- a tensor of datatype BYTES, named as its column of texts: [n] or [n, 1];
- `input_ids` [n, t] as its own tokenizer gives them, beside `attention_mask` of the same shape (0: no token there);
  without a mask every number is a token;
- `features` [n, t]: the same in one tensor, below 0 where there is no token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from modelyard.errors import DataError
from modelyard.serve.datatypes import INFERENCE, BadRequestError, parse_object, texts_from_binary
from modelyard.serve.protocol_v2 import (
    INPUT_NAME,
    InferRequest,
    check_outputs,
    parse_flag,
    parse_matrix,
    parse_outputs,
    parse_parameters,
)
from modelyard.serve.texts import tokens_of
from modelyard.serve.worker_info import WorkerInfo
from modelyard.transform import TextTransform

IDS, MASK = "input_ids", "attention_mask"
NO_TOKEN = -1


def read_texts(body: bytes, head_bytes: int | None, model: str, info: WorkerInfo) -> InferRequest:
    """A request body as rows of tokens.

    Raises:
        BadRequestError: says what is wrong with it.
    """
    assert isinstance(info.transform, TextTransform)
    if head_bytes is not None and not 0 < head_bytes <= len(body):
        raise BadRequestError(f"Inference-Header-Content-Length is {head_bytes}, the body has {len(body)} bytes")
    head, raw = (body, None) if head_bytes is None else (body[:head_bytes], memoryview(body)[head_bytes:])
    document = parse_object(head, INFERENCE)
    tensors = _named(document, raw)
    client_id = document.get("id")
    if client_id is not None and not isinstance(client_id, str):
        raise BadRequestError("'id' must be a string")
    binary = parse_flag(document, "binary_data_output", otherwise=False)
    rows = _rows(tensors, info.transform)
    request = InferRequest(client_id, rows, parse_outputs(document.get("outputs"), binary), binary)
    check_outputs(request, model, info)
    return request


def text_inputs(transform: TextTransform) -> list[dict[str, Any]]:
    """The model's inputs, as its metadata describes them: a text, and beside it what may come instead."""
    instead = {"inputs": [IDS, MASK], "datatype": "INT64", "shape": [-1, -1], "max_length": transform.max_length}
    return [
        {"name": transform.column, "datatype": "BYTES", "shape": [-1], "parameters": {"columns": transform.columns, "or": instead}}
    ]  # fmt: skip


def _named(document: dict[str, Any], raw: memoryview | None) -> dict[str, tuple[dict[str, Any], memoryview | None]]:
    """Tensor by name with its own part of the binary data."""
    inputs = document.get("inputs")
    if not isinstance(inputs, list) or not inputs or not all(isinstance(one, dict) for one in inputs):
        raise BadRequestError("'inputs' must be a list of tensors")
    found: dict[str, tuple[dict[str, Any], memoryview | None]] = {}
    begin = 0
    for tensor in inputs:
        name, size = tensor.get("name"), parse_parameters(tensor).get("binary_data_size")
        if not isinstance(name, str) or name in found:
            raise BadRequestError("every input must have a name of its own")
        part = None
        if size is not None:
            if raw is None:
                raise BadRequestError("'binary_data_size' needs the header Inference-Header-Content-Length")
            if type(size) is not int or not 0 <= size <= len(raw) - begin:
                raise BadRequestError(f"'binary_data_size' is {size!r}, but {len(raw) - begin} bytes follow the JSON")
            part, begin = raw[begin : begin + size], begin + size
        found[name] = tensor, part
    if raw is not None and begin != len(raw):
        raise BadRequestError(f"{len(raw) - begin} bytes follow the JSON that belong to no tensor")
    return found


def _rows(tensors: Mapping[str, tuple[dict[str, Any], memoryview | None]], transform: TextTransform) -> np.ndarray:
    names = set(tensors)
    try:
        if names == {transform.column}:
            return tokens_of(transform, _texts(*tensors[transform.column]))
        if names == {INPUT_NAME}:
            return transform.apply(parse_matrix(*tensors[INPUT_NAME]))
        if names in ({IDS}, {IDS, MASK}):
            return transform.apply(_masked(tensors))
    except DataError as failure:
        raise BadRequestError(str(failure)) from None
    wanted = f"{transform.column!r} (BYTES), or {IDS!r} with {MASK!r}"
    raise BadRequestError(f"the inputs must be {wanted}, not {', '.join(sorted(names))}")


def _masked(tensors: Mapping[str, tuple[dict[str, Any], memoryview | None]]) -> np.ndarray:
    numbers = parse_matrix(*tensors[IDS])
    if MASK not in tensors:
        return numbers
    mask = parse_matrix(*tensors[MASK])
    if mask.shape != numbers.shape:
        raise BadRequestError(f"{MASK} has the shape {list(mask.shape)}, {IDS} {list(numbers.shape)}")
    return np.where(mask != 0, numbers, NO_TOKEN)


def _texts(tensor: dict[str, Any], raw: memoryview | None) -> list[str]:
    shape = tensor.get("shape")
    if tensor.get("datatype") != "BYTES":
        raise BadRequestError(f"texts are of datatype BYTES, not {tensor.get('datatype')!r}")
    fits = isinstance(shape, list) and shape[1:] in ([], [1]) and shape and type(shape[0]) is int and shape[0] > 0
    if not isinstance(shape, list) or not fits:
        raise BadRequestError("'shape' of texts must be [rows] or [rows, 1]")
    data = tensor.get("data") if raw is None else texts_from_binary(raw)
    if isinstance(data, list) and all(isinstance(row, list) and len(row) == 1 for row in data):
        data = [row[0] for row in data]
    if not isinstance(data, list) or not all(isinstance(text, str) for text in data):
        raise BadRequestError("'data' must be a list of texts")
    if len(data) != shape[0]:
        raise BadRequestError(f"shape {shape} does not fit {len(data)} texts")
    return data
