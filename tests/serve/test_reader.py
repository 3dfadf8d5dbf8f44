"""Requests that the router passes on: workers read them, and write their answers, as the router would."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from modelyard.serve import protocol_v2
from modelyard.serve.bodies import Head
from modelyard.serve.datatypes import BadRequestError
from modelyard.serve.protocol_v2 import OpenInference
from modelyard.serve.reader import read_and_answer
from modelyard.serve.unread import Answered, Call, Unread, pack_call, unpack_answered
from modelyard.serve.wire import Tensor
from modelyard.serve.worker_info import WorkerInfo
from modelyard.settings import Settings
from modelyard.storage import Store
from tests.serve.inprocess import endpoint
from tests.serve.packages import ROWS, LinearModel, publish_version
from tests.serve.test_parsing import bodies

INFER = "/v2/models/digits/infer"
INFO = WorkerInfo(columns=["a", "b"], outputs=[("label", "BYTES", 0), ("outputs", "FP32", 2)])
CONTEXT: dict[str, Any] = {"model": "naïve model", "version": "7"}


def infer(rows: np.ndarray) -> dict[str, Tensor]:
    return {"label": [f"{row[0]:g}" for row in rows], "outputs": rows.astype(np.float32) * 2}


def request(rows: list[list[float]], **more: Any) -> bytes:
    tensor = {"name": "features", "datatype": "FP32", "shape": [len(rows), len(rows[0])], "data": rows}
    return json.dumps({"inputs": [tensor]} | more).encode()


def binary(rows: list[list[float]]) -> tuple[bytes, int]:
    raw = np.array(rows, dtype="<f4").tobytes()
    tensor = {
        "name": "features",
        "datatype": "FP32",
        "shape": [len(rows), 2],
        "parameters": {"binary_data_size": len(raw)},
    }
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return head + raw, len(head)


def unread(body: bytes, head_bytes: int | None = None, request_id: str = "ours") -> Unread:
    return Unread(body, head_bytes, request_id, INFO.width, _unheard)


def answers(*requests: Unread) -> Answered:
    packed = pack_call(Call(CONTEXT["model"], CONTEXT["version"], list(requests)))
    return unpack_answered(read_and_answer(packed, INFO, infer))


def test_each_is_told_what_the_router_would_tell():
    """JSON and binary data, one row and more, with an id and without, side by side in one call."""
    body, head_bytes = binary([[9, 8]])
    asked = [unread(request([[1, 2], [3, 4]])), unread(body, head_bytes), unread(request([[5, 6]], id="mine"))]
    dialect = OpenInference()
    for one, told in zip(asked, answers(*asked).told, strict=True):
        read = dialect.read(one.body, Head(head_bytes=one.head_bytes), CONTEXT["model"], INFO)
        content, headers = dialect.write(infer(read.rows), INFO, read, **CONTEXT, request_id="ours")
        assert (told.status, told.content, dialect.describe_content(told.head_bytes)) == (200, content, headers)


def test_one_that_cannot_be_read_costs_its_neighbours_nothing():
    """It gets its sentence, in its place; a call of nothing else asks no model."""
    wide, broken, good = request([[1, 2, 3]]), b"[", request([[1, 2]])
    told = answers(unread(wide), unread(good), unread(broken)).told
    assert [one.status for one in told] == [400, 200, 400]
    assert told[0].content == "model 'naïve model' takes rows of 2 values, these have 3".encode()
    assert b"not JSON" in told[2].content
    assert json.loads(told[1].content)["outputs"][1]["data"] == [2.0, 4.0]
    assert answers(unread(broken)).told == [told[2]]


@given(bodies())
def test_the_router_knows_how_many_rows_there_are_at_most(body: bytes):
    """Without reading a request it counts none too few, so that calls stay within their bound."""
    packed = json.dumps(json.loads(body), separators=(",", ":")).encode()
    for given_body in (body, packed):
        try:
            rows = protocol_v2.parse_infer(given_body).rows
        except BadRequestError:
            continue
        assert len(rows) <= len(Unread(given_body, None, "", rows.shape[1], _unheard))


@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize("is_binary", [False, True])
def test_many_short_rows_are_counted(width: int, is_binary: bool):
    """Of numbers that take no more room than they must it counts nearly as many rows as there are."""
    tensor: dict[str, Any] = {"name": "features", "datatype": "INT8", "shape": [500, width]}
    raw = bytes(500 * width) if is_binary else b""
    tensor |= {"parameters": {"binary_data_size": len(raw)}} if is_binary else {"data": [1] * 500 * width}
    head = json.dumps({"inputs": [tensor]}, separators=(",", ":")).encode()
    head_bytes = len(head) if is_binary else None
    assert protocol_v2.parse_infer(head + raw, head_bytes).rows.shape == (500, width)
    assert 500 <= len(Unread(head + raw, head_bytes, "", width, _unheard)) < 650


async def test_the_router_does_not_read_a_plain_request(
    settings: Settings, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It cannot here, and answers and refuses all the same; what is too long for a worker it has to read."""
    plain = {"inputs": [{"name": "features", "datatype": "FP64", "shape": list(ROWS.shape), "data": ROWS.tolist()}]}
    many = np.tile(ROWS, (500, 1))
    long = {"inputs": [{"name": "features", "datatype": "FP64", "shape": list(many.shape), "data": many.tolist()}]}
    async with endpoint(settings, store, publish_version(store, "7"), tmp_path) as inside:
        monkeypatch.setattr(protocol_v2, "parse_infer", _unheard)
        answer = await inside.client.post(INFER, json=plain)
        assert answer.status_code == 200
        assert answer.headers["modelyard-request-id"] == answer.json()["id"]
        told = answer.json()["outputs"][-1]["data"]
        np.testing.assert_allclose(np.array(told).reshape(len(ROWS), -1), LinearModel(7).outputs(ROWS), atol=1e-5)
        refused = await inside.client.post(INFER, json={"inputs": []})
        assert refused.status_code == 400
        assert refused.json()["error"].startswith("'inputs' must be")
        assert (await inside.client.post(INFER, json=long)).status_code == 500
        page = (await inside.client.get("/metrics")).text
    counted = 'request_predict_seconds_count{model_name="digits",model_version="7"} 1.0'
    assert counted in page


def _unheard(*_: object) -> None:
    """Nobody is to call this."""
    raise AssertionError
