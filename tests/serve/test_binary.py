"""Binary tensors and compressed bodies, as NVIDIA's client sends them and as nobody should."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton

from tests.serve.packages import ROWS, LinearModel
from tests.serve.processes import Endpoint

INFER = "/v2/models/digits/infer"
LABELS = [("ant", "bee", "cat")[best] for best in LinearModel(7).outputs(ROWS).argmax(axis=1)]


@pytest.fixture(scope="module")
def endpoint(digits_endpoint: Endpoint) -> Endpoint:
    return digits_endpoint


@pytest.fixture(scope="module")
def client(endpoint: Endpoint) -> Iterator[Any]:
    client = triton.InferenceServerClient(endpoint.url.removeprefix("http://"))
    yield client
    client.close()


def triton_input(rows: np.ndarray, datatype: str, *, binary: bool) -> Any:
    tensor = triton.InferInput("features", list(rows.shape), datatype)
    tensor.set_data_from_numpy(rows, binary_data=binary)
    return tensor


@pytest.mark.parametrize("answer_is_binary", [True, False])
@pytest.mark.parametrize("request_is_binary", [True, False])
@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_tritonclient_round_trip(client: Any, request_is_binary: bool, answer_is_binary: bool, compression: str | None):
    """JSON and binary in either direction, compressed both ways or not, are the same numbers and texts."""
    rows = np.tile(ROWS, (64, 1)).astype(np.float32)  # an answer long enough to be worth compressing
    result = client.infer(
        "digits",
        [triton_input(rows, "FP32", binary=request_is_binary)],
        outputs=[triton.InferRequestedOutput(name, binary_data=answer_is_binary) for name in ("label", "outputs")],
        request_compression_algorithm=compression,
        response_compression_algorithm=compression,
    )
    expected = LinearModel(7).outputs(rows.astype(np.float64))
    np.testing.assert_allclose(result.as_numpy("outputs"), expected, atol=1e-4)
    labels = [text.decode() if isinstance(text, bytes) else text for text in result.as_numpy("label")]
    assert labels == LABELS * 64
    assert [output["name"] for output in result.get_response()["outputs"]] == ["label", "outputs"]


def test_tritonclient_asks_for_everything(client: Any):
    """Without named outputs the client gets all of them, as binary data, by their metadata's datatypes and shapes."""
    result = client.infer("digits", [triton_input(ROWS, "FP64", binary=True)], model_version="7", request_id="mine")
    metadata = client.get_model_metadata("digits", model_version="7")
    answer = result.get_response()
    assert (answer["id"], answer["model_version"]) == ("mine", "7")
    assert [(one["name"], one["datatype"]) for one in answer["outputs"]] == [
        (one["name"], one["datatype"]) for one in metadata["outputs"]
    ]
    assert all("binary_data_size" in one["parameters"] for one in answer["outputs"])
    assert result.as_numpy("probability").shape == (8,)


def test_tritonclient_asks_how_it_is(client: Any):
    """Health, readiness and metadata of server, model and version; the server lists the extension."""
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("digits")
    assert client.is_model_ready("digits", "7")
    assert not client.is_model_ready("cats")
    assert not client.is_model_ready("digits", "8")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    with pytest.raises(triton.InferenceServerException, match="serves no model 'cats'"):
        client.infer("cats", [triton_input(ROWS, "FP64", binary=True)])


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT64"])
def test_every_datatype_in_binary_and_json(endpoint: Endpoint, datatype: str):
    """The same integers, sent in any datatype and either way, get the same answer."""
    numbers = np.array([[1, 2, 3, 4], [5, 0, 7, 100]])
    raw = numbers.astype(dtypes()[datatype]).tobytes()
    binary = send(endpoint, *binary_request(raw, datatype=datatype, shape=[2, 4]))
    plain = endpoint.client.post(INFER, json=json_request(numbers.ravel().tolist(), datatype=datatype, shape=[2, 4]))
    for response in (binary, plain):
        assert response.status_code == 200, response.text
        np.testing.assert_allclose(outputs_of(response), LinearModel(7).outputs(numbers), rtol=1e-4)


def test_truths_in_binary_and_json(endpoint: Endpoint):
    """BOOL is 0 or 1 to the model; neither other bytes nor JSON's numbers are truths, nor are its truths numbers."""
    truths = np.array([[True, False, True, True]])
    shape = {"datatype": "BOOL", "shape": [1, 4]}
    binary = send(endpoint, *binary_request(truths.tobytes(), **shape))
    plain = endpoint.client.post(INFER, json=json_request(truths.ravel().tolist(), **shape))
    for response in (binary, plain):
        assert response.status_code == 200, response.text
        np.testing.assert_allclose(outputs_of(response), LinearModel(7).outputs(truths.astype(float)), rtol=1e-4)
    wrong = [
        send(endpoint, *binary_request(b"\x00\x02\x01\x00", **shape)),
        endpoint.client.post(INFER, json=json_request([1, 0, 1, 1], **shape)),
        endpoint.client.post(INFER, json=json_request([1.5, 0.5, 1.0, 1.0], **shape)),
        endpoint.client.post(INFER, json=json_request(truths.ravel().tolist(), datatype="FP32", shape=[1, 4])),
        endpoint.client.post(INFER, json=json_request([True, 1, 0, False], **shape)),
    ]
    assert [response.status_code for response in wrong] == [400] * 5
    assert "0 and 1" in wrong[0].json()["error"]


def dtypes() -> dict[str, str]:
    return {"FP16": "<f2", "FP32": "<f4", "FP64": "<f8", "INT8": "i1", "INT16": "<i2", "INT32": "<i4", "INT64": "<i8",
            "UINT8": "u1", "UINT64": "<u8"}  # fmt: skip


def json_request(data: Any, **changes: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "features", "datatype": "FP64", "shape": list(ROWS.shape), "data": data} | changes]}


def binary_request(raw: bytes, *, length: str | None = None, **changes: Any) -> tuple[bytes, dict[str, str]]:
    """A body and its headers, as a client of the extension makes them, with changes to its tensor."""
    tensor = {"name": "features", "datatype": "FP64", "shape": list(ROWS.shape)}
    described = tensor | {"parameters": {"binary_data_size": len(raw)}} | changes
    head = json.dumps({"inputs": [described]}).encode()
    return head + raw, {"Inference-Header-Content-Length": str(len(head)) if length is None else length}


def send(endpoint: Endpoint, body: bytes, headers: dict[str, str]) -> httpx.Response:
    return endpoint.client.post(INFER, content=body, headers=headers)


def outputs_of(response: httpx.Response) -> np.ndarray:
    output = response.json()["outputs"][-1]
    return np.array(output["data"]).reshape(output["shape"])


GOOD = ROWS.astype("<f8").tobytes()


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (binary_request(GOOD[:-1]), "is 256 bytes, the binary data has 255"),
        (binary_request(GOOD, shape=[8, 5]), "is 320 bytes"),
        (binary_request(GOOD, shape=[2**40, 2**40]), "bytes"),
        (binary_request(GOOD, shape=[-8, 4]), "no values"),
        (binary_request(GOOD, parameters={"binary_data_size": -1}), "is -1, but 256 bytes"),
        (binary_request(GOOD, parameters={"binary_data_size": 10**30}), "but 256 bytes"),
        (binary_request(GOOD, parameters={"binary_data_size": True}), "is True"),
        (binary_request(GOOD, parameters={}), "256 bytes follow the JSON"),
        (binary_request(GOOD, parameters=[1]), "'parameters' must be an object"),
        (binary_request(GOOD, data=[1.0]), "not both"),
        (binary_request(GOOD, datatype="BYTES"), "datatype 'BYTES'"),
        (binary_request(GOOD, datatype="INT8"), "is 32 bytes"),
        (binary_request(np.full(ROWS.shape, np.nan).tobytes()), "not finite"),
        (binary_request(GOOD, length="0"), "Content-Length is 0"),
        (binary_request(GOOD, length="100000"), "the body has"),
        (binary_request(GOOD, length="12"), "not JSON"),
        (binary_request(GOOD, length="-5"), "must be a number"),
        (binary_request(GOOD, length="9" * 30), "must be a number"),
    ],
)
def test_wrong_binary_data_is_400_with_a_sentence(
    endpoint: Endpoint, request_: tuple[bytes, dict[str, str]], sentence: str
):
    """Lengths that do not agree, impossible shapes and values that are no numbers are refused, each with its reason."""
    response = send(endpoint, *request_)
    assert response.status_code == 400, response.text
    assert sentence in response.json()["error"]


def test_a_size_without_the_header_is_400(endpoint: Endpoint):
    """Binary data needs the header that says where it begins."""
    body, _ = binary_request(b"")
    response = send(endpoint, body, {})
    assert response.status_code == 400
    assert "Inference-Header-Content-Length" in response.json()["error"]


@pytest.mark.parametrize(
    ("datatype", "value"), [("INT8", 128), ("UINT8", -1), ("UINT64", -1), ("INT32", 2**31), ("FP16", 70000.0)]
)
def test_a_number_beyond_its_datatype_is_400(endpoint: Endpoint, datatype: str, value: float):
    """What the named datatype cannot hold is not taken, whatever the model would make of it."""
    response = endpoint.client.post(INFER, json=json_request([value] * 4, datatype=datatype, shape=[1, 4]))
    assert response.status_code == 400, response.text


@pytest.mark.parametrize("wanted", [{"binary_data": 1}, {"binary_data": "yes"}])
def test_a_flag_is_true_or_false(endpoint: Endpoint, wanted: dict[str, Any]):
    """A parameter of the extension that is no flag is refused by name."""
    asked = {"outputs": [{"name": "outputs", "parameters": wanted}]}
    response = endpoint.client.post(INFER, json=json_request(ROWS.tolist()) | asked)
    assert response.status_code == 400
    assert "binary_data" in response.json()["error"]


@pytest.mark.parametrize("compress", [gzip.compress, zlib.compress], ids=["gzip", "deflate"])
def test_a_bomb_is_413(endpoint: Endpoint, compress: Callable[[bytes], bytes]):
    """A small body that would fill the memory is given up at the limit of a plain one."""
    name = "gzip" if compress is gzip.compress else "deflate"
    response = send(endpoint, compress(b" " * (64 * 2**20)), {"Content-Encoding": name})
    assert response.status_code == 413
    assert "decompresses to more than" in response.json()["error"]


@pytest.mark.parametrize(
    "body",
    [b"", b"not compressed", gzip.compress(b"{}")[:-3], gzip.compress(b"{}") + b"more"],
    ids=["empty", "plain", "cut", "longer"],
)
def test_what_is_not_compressed_is_400(endpoint: Endpoint, body: bytes):
    """Bytes that are not what their header says are the client's error."""
    response = send(endpoint, body, {"Content-Encoding": "gzip"})
    assert response.status_code == 400, response.text
    assert "compressed" in response.json()["error"]


@pytest.mark.parametrize(
    ("accepts", "used"),
    [("gzip", "gzip"), ("deflate", "deflate"), ("br, gzip;q=0.5", "gzip"), ("gzip;q=0", None), ("identity", None)],
)
def test_answers_are_compressed_for_who_can_read_it(endpoint: Endpoint, accepts: str, used: str | None):
    """A long answer is compressed as Accept-Encoding allows, a short one never."""
    long = json_request(np.tile(ROWS, (16, 1)).tolist(), shape=[128, 4])
    headers = {"Accept-Encoding": accepts}
    response = endpoint.client.post(INFER, json=long, headers=headers)
    assert response.headers.get("content-encoding") == used
    assert response.json()["outputs"][-1]["shape"] == [128, 3]
    small = json_request(ROWS[:1].tolist(), shape=[1, 4]) | {"outputs": [{"name": "outputs"}]}
    assert "content-encoding" not in endpoint.client.post(INFER, json=small, headers=headers).headers
