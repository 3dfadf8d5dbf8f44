"""The Open Inference Protocol as clients meet it, at a real endpoint."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from modelyard import request_ids
from modelyard.request_ids import RequestId
from modelyard.storage import Store
from tests.serve.packages import COLUMNS, ROWS, WIDTH, LinearModel, publish_version, roll_out
from tests.serve.processes import TOKEN, Endpoint

INFER = "/v2/models/digits/infer"


@pytest.fixture(scope="module")
def endpoint(store: Store, new_endpoint: Callable[[], Endpoint]) -> Endpoint:
    endpoint = new_endpoint()
    roll_out(store, endpoint.name, publish_version(store, "7"))
    roll_out(store, endpoint.name, publish_version(store, "3", classes=(10, 20, 30)), model="numbers")
    endpoint.start().reach(2)
    return endpoint


def request_body(rows: np.ndarray = ROWS, **changes: Any) -> dict[str, Any]:
    """A good request, with changes to its one tensor."""
    tensor = {"name": "features", "datatype": "FP64", "shape": list(rows.shape), "data": rows.tolist()}
    return {"inputs": [tensor | changes]}


def outputs_of(answer: dict[str, Any]) -> dict[str, np.ndarray]:
    return {output["name"]: np.array(output["data"]).reshape(output["shape"]) for output in answer["outputs"]}


def test_infer_round_trip(endpoint: Endpoint):
    """Raw rows come back as labels, probabilities and the outputs of that version's own weights."""
    response = endpoint.client.post(INFER, json=request_body() | {"id": "mine"})
    assert response.status_code == 200, response.text
    answer = response.json()
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("digits", "7", "mine")
    outputs, expected = outputs_of(answer), LinearModel(7).outputs(ROWS)
    np.testing.assert_allclose(outputs["outputs"], expected, atol=1e-5)
    assert outputs["label"].tolist() == [("ant", "bee", "cat")[best] for best in expected.argmax(axis=1)]
    odds = np.exp(expected - expected.max(axis=1, keepdims=True))
    np.testing.assert_allclose(outputs["probability"], (odds / odds.sum(axis=1, keepdims=True)).max(axis=1), atol=1e-5)


def test_every_answer_carries_its_lineage(endpoint: Endpoint):
    """From the headers alone one finds model, version, artifact, revision, and a request id that repeats them."""
    headers = endpoint.client.post(INFER, json=request_body()).headers
    status = endpoint.status()["models"]["digits"]["versions"][0]
    assert headers["Modelyard-Model"] == "digits"
    assert headers["Modelyard-Model-Version"] == "7"
    assert headers["Modelyard-Artifact-Digest"] == status["digest"]
    assert headers["Modelyard-Endpoint-Revision"] == "2"
    assert request_ids.parse(headers["Modelyard-Request-Id"]) == RequestId(
        endpoint=endpoint.name, revision=2, model="digits", version="7"
    )
    again = endpoint.client.post(INFER, json=request_body()).headers
    assert again["Modelyard-Request-Id"] != headers["Modelyard-Request-Id"]


@pytest.mark.parametrize(
    "changes",
    [
        {"data": ROWS.ravel().tolist()},
        {"datatype": "FP32"},
        {"datatype": "INT64", "data": [1] * ROWS.size},
        {"shape": [1, WIDTH], "data": ROWS[0].tolist()},
    ],
    ids=["flat", "fp32", "integers", "one-row"],
)
def test_accepted_forms_of_a_tensor(endpoint: Endpoint, changes: dict[str, Any]):
    """Flat or nested data of every real datatype gives one answer a row."""
    response = endpoint.client.post(INFER, json=request_body(**changes))
    assert response.status_code == 200, response.text
    assert outputs_of(response.json())["outputs"].shape == (changes.get("shape", ROWS.shape)[0], 3)


def test_only_the_outputs_asked_for(endpoint: Endpoint):
    """`outputs` selects; integer classes are INT64, others BYTES."""
    wanted = {"outputs": [{"name": "label"}]}
    texts = endpoint.client.post(INFER, json=request_body() | wanted).json()["outputs"]
    numbers = endpoint.client.post("/v2/models/numbers/infer", json=request_body() | wanted).json()["outputs"]
    assert [(output["name"], output["datatype"]) for output in texts] == [("label", "BYTES")]
    assert [(output["name"], output["datatype"]) for output in numbers] == [("label", "INT64")]
    assert set(numbers[0]["data"]) <= {10, 20, 30}


def test_metadata_and_health(endpoint: Endpoint):
    """The model's metadata names its columns and outputs; server, model and version say that they are ready."""
    metadata = endpoint.client.get("/v2/models/digits").json()
    assert metadata["versions"] == ["7"]
    [features] = metadata["inputs"]
    assert (features["name"], features["shape"], features["parameters"]) == ("features", [-1, 4], {"columns": COLUMNS})
    assert [(output["name"], output["shape"]) for output in metadata["outputs"]] == [
        ("label", [-1]),
        ("probability", [-1]),
        ("outputs", [-1, 3]),
    ]
    assert endpoint.client.get("/v2").json()["name"] == "modelyard"
    assert "digits" in endpoint.client.get("/").json()["models"]
    for path in ("/livez", "/readyz", "/v2/health/live", "/v2/health/ready", "/v2/models/digits/ready"):
        assert endpoint.client.get(path).status_code == 200, path
    assert endpoint.client.get("/v2/models/digits/versions/7/ready").json()["ready"] is True
    assert endpoint.client.post("/v2/models/digits/versions/7/infer", json=request_body()).status_code == 200


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"name": "pixels"}, "must be named 'features'"),
        ({"datatype": "BYTES"}, "datatype 'BYTES'"),
        ({"datatype": ["FP32"]}, "datatype"),
        ({"shape": [8, 5]}, "does not fit"),
        ({"shape": [4, 8]}, "does not fit"),
        ({"shape": [-1, 4]}, "no values"),
        ({"shape": [10**18, 4]}, "does not fit"),
        ({"shape": [4, 10**30]}, "two integers"),
        ({"shape": [2**62, 2**62], "data": [1.0]}, "does not fit"),
        ({"shape": [0, 4], "data": []}, "no values"),
        ({"shape": [8]}, "two integers"),
        ({"shape": [True, 4]}, "two integers"),
        ({"shape": [32, 1], "data": ROWS.ravel().tolist()}, "takes rows of 4 values"),
        ({"data": "abc"}, "must be a list"),
        ({"data": [[1.0, 2.0], [3.0]]}, "flat list"),
        ({"data": ["1.5"] * ROWS.size}, "something else"),
        ({"data": [None] * ROWS.size}, "something else"),
        ({"data": [2**70] * ROWS.size, "datatype": "INT64"}, "something else"),
        ({"datatype": "INT32"}, "something else"),
        ({"datatype": "FP32", "data": [1e39] * ROWS.size}, "not finite"),
    ],
)
def test_a_wrong_tensor_is_400_with_a_sentence(endpoint: Endpoint, changes: dict[str, Any], sentence: str):
    """What does not fit the model is refused with the reason, never computed and never a 500."""
    response = endpoint.client.post(INFER, json=request_body(**changes))
    assert response.status_code == 400, response.text
    assert re.search(sentence, response.json()["error"])


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'{"inputs": []}', b'{"inputs": [1]}', b'{"inputs": 1}', b"[" * 100_000, b"\xff\xfe"],
)
def test_a_malformed_body_is_400(endpoint: Endpoint, body: bytes):
    """Anything that is not the protocol's JSON is the client's error."""
    response = endpoint.client.post(INFER, content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400, response.text
    assert response.json()["error"]
    assert response.headers["Modelyard-Endpoint-Revision"] == "2"


def test_nan_and_infinity_are_refused(endpoint: Endpoint):
    """Python's JSON writes NaN and Infinity; neither reaches the model."""
    for value in ("NaN", "Infinity", "1e999"):
        text = json.dumps(request_body()).replace(str(ROWS[0, 0]), value, 1)
        assert endpoint.client.post(INFER, content=text.encode()).status_code == 400, value


def test_status_codes_of_the_protocol(endpoint: Endpoint):
    """Unknown names, wrong verbs, types and sizes have their own codes, each with an error body."""
    client, good = endpoint.client, request_body()
    answers = {
        404: [
            client.post("/v2/models/cats/infer", json=good),
            client.post("/v2/models/digits/versions/99/infer", json=good),
            client.get("/v2/models/cats"),
            client.get("/v2/models/digits/nothing"),
            client.get("/nothing"),
        ],
        405: [client.get(INFER), client.post("/v2/models/digits", json={}), client.get("/admin/notify")],
        413: [client.post(INFER, content=b" " * (17 * 2**20), headers={"content-type": "application/json"})],
        415: [
            client.post(INFER, content=b"1,2,3,4", headers={"content-type": "text/csv"}),
            client.post(INFER, json=good, headers={"content-encoding": "br"}),
        ],
        400: [client.post(INFER, json=good | {"outputs": [{"name": "secrets"}]}), client.post(INFER, json={"id": 5})],
    }
    for code, responses in answers.items():
        for response in responses:
            assert response.status_code == code, (response.request.url, response.text)
            assert response.json()["error"]
    assert answers[405][0].headers["allow"] == "POST"


def test_a_chunked_body_is_bounded_too(endpoint: Endpoint):
    """A body that does not say its length is cut off at the limit."""
    response = endpoint.client.post(INFER, content=(b" " * 2**20 for _ in range(18)))
    assert response.status_code == 413


def test_metrics_count_by_model_version_and_code(endpoint: Endpoint):
    """Prometheus sees the requests, and a client cannot invent labels."""
    endpoint.client.post(INFER, json=request_body())
    endpoint.client.post("/v2/models/invented/infer", json=request_body())
    page = endpoint.client.get("/metrics").text
    assert 'modelyard_requests_total{code="200",model="digits",version="7"}' in page
    assert "modelyard_endpoint_revision 2.0" in page
    assert 'modelyard_request_seconds_bucket{le="0.0005",model="digits",version="7"}' in page
    assert "invented" not in page
    for stage in ("preprocess", "predict", "postprocess"):  # as KServe's servers call them
        labels = '{model_name="digits",model_version="7"}'
        counted, seconds = (
            float(re.search(rf"request_{stage}_seconds_{what}{re.escape(labels)} (\S+)", page)[1])
            for what in ("count", "sum")
        )
        assert counted >= 1
        assert 0 < seconds < 15 * counted


@pytest.mark.parametrize("given", [None, "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN} "])
def test_admin_needs_the_token(endpoint: Endpoint, given: str | None):
    """Without the exact token the admin routes answer 401."""
    headers = ["GET /admin/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"]
    if given:
        headers.append(f"Authorization: {given.strip() + 'x' if given.endswith(' ') else given}\r\n")
    with socket.create_connection(("127.0.0.1", endpoint.port)) as connection:
        connection.sendall("".join([*headers, "\r\n"]).encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 401 ")
