"""What a worker does with requests that the router has not read: rows out of each, one call for all, an answer to each."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import numpy as np

from modelyard.errors import DataError
from modelyard.serve.protocol_v2 import InferRequest, check_fits, parse_infer, written
from modelyard.serve.unread import Told, pack_answered, unpack_call
from modelyard.serve.wire import Tensor
from modelyard.serve.worker_info import WorkerInfo
from modelyard.transform import joined

Infer = Callable[[np.ndarray], dict[str, Tensor]]


def read_and_answer(payload: bytes, info: WorkerInfo, infer: Infer) -> bytes:
    """A packed call (`unread.Call`) to its packed answer. One that cannot be read costs the others nothing.

    Raises:
        DataError: the model refuses the rows of some of them.
    """
    began = perf_counter()
    model, version, requests = unpack_call(payload)
    read = [(request_id, _read(body, head_bytes, model, info)) for request_id, head_bytes, body in requests]
    rows = [request.rows for _, request in read if isinstance(request, InferRequest)]
    begun = perf_counter()
    answers = infer(rows[0] if len(rows) == 1 else joined(rows)) if rows else {}
    ended = perf_counter()
    told: list[Told] = []
    begin = 0
    for request_id, request in read:
        if isinstance(request, Told):
            told.append(request)
            continue
        end = begin + len(request.rows)
        mine = {name: tensor[begin:end] for name, tensor in answers.items()}
        begin = end
        told.append(Told(200, *written(mine, info, request, model=model, version=version, request_id=request_id)))
    return pack_answered(told, (begun - began, ended - begun, perf_counter() - ended))


def _read(body: bytes, head_bytes: int | None, model: str, info: WorkerInfo) -> InferRequest | Told:
    try:
        request = parse_infer(body, head_bytes)
        check_fits(request, model, info)
    except DataError as failure:
        return Told(400, str(failure).encode())
    return request
