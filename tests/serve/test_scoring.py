"""MLflow's scoring protocol, asked by MLflow's own client and compared with MLflow's own prediction."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from modelyard.catalog import Catalog
from modelyard.compress.mlmodel import mlmodel_yaml
from modelyard.model_package import MLMODEL_FILE
from modelyard.storage import Store
from tests.serve.packages import COLUMNS, MIXED, ROWS, LinearModel, publish_version, roll_out
from tests.serve.processes import Endpoint

FRAME = pd.DataFrame(ROWS, columns=COLUMNS)
LABELS = [("ant", "bee", "cat")[best] for best in LinearModel(7).outputs(ROWS).argmax(axis=1)]


@pytest.fixture(scope="module")
def endpoint(store: Store, new_endpoint: Callable[[], Endpoint]) -> Endpoint:
    """Serves one model."""
    endpoint = new_endpoint()
    roll_out(store, endpoint.name, publish_version(store, "7"))
    endpoint.start().reach(1)
    return endpoint


@pytest.fixture(scope="module")
def mixed(store: Store, new_endpoint: Callable[[], Endpoint]) -> Endpoint:
    """Serves a model of texts, gaps and numbers."""
    endpoint = new_endpoint()
    roll_out(store, endpoint.name, publish_version(store, "7", transform=MIXED))
    endpoint.start().reach(1)
    return endpoint


def invoke(endpoint: Endpoint, **document: Any) -> Any:
    return endpoint.client.post("/invocations", json=document)


def labels_of(response: Any) -> list[str]:
    assert response.status_code == 200, response.text
    return [record["label"] for record in response.json()["predictions"]]


@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning")  # MLflow's own, at import
def test_mlflow_client_gets_what_mlflow_predicts(endpoint: Endpoint, store: Store, tmp_path: Path):
    """The client's predictions on a frame are those of `mlflow.pyfunc.load_model` on the served package."""
    import mlflow.pyfunc
    from mlflow.pyfunc.scoring_server.client import ScoringServerClient

    folder = tmp_path / "package"
    served = endpoint.status()["models"]["digits"]["versions"][0]
    Catalog(store).fetch(publish_version(store, "7").artifact, folder)
    (folder / MLMODEL_FILE).write_bytes(mlmodel_yaml())
    expected = mlflow.pyfunc.load_model(str(folder)).predict(FRAME)

    client = ScoringServerClient("127.0.0.1", endpoint.port)
    client.wait_server_ready()
    assert client.get_version()
    shuffled = FRAME[COLUMNS[::-1]].assign(further=1.5)
    for frame in (FRAME, shuffled):
        answered = client.invoke(frame).get_predictions()
        assert answered["label"].tolist() == expected["label"].tolist() == LABELS
        np.testing.assert_allclose(answered["probability"], expected["probability"], atol=1e-6)
        assert list(answered.columns) == list(expected.columns)
    assert served["version"] == "7"


@pytest.mark.parametrize(
    "document",
    [
        {"dataframe_split": FRAME.to_dict(orient="split")},
        {"dataframe_split": FRAME[COLUMNS[::-1]].to_dict(orient="split"), "params": {"temperature": 1}},
        {"dataframe_records": FRAME.assign(further="text").to_dict(orient="records")},
        {"instances": FRAME.to_dict(orient="records")},
        {"instances": ROWS.tolist()},
        {"inputs": FRAME.to_dict(orient="list")},
        {"inputs": ROWS.tolist()},
    ],
    ids=["split", "split-shuffled", "records", "instances-named", "instances", "inputs-named", "inputs"],
)
def test_every_json_shape_is_the_same_rows(endpoint: Endpoint, document: dict[str, Any]):
    """All four shapes, by name or by position, in any order of columns, get the same predictions."""
    response = invoke(endpoint, **document)
    assert labels_of(response) == LABELS
    assert response.headers["Modelyard-Model-Version"] == "7"
    assert set(response.json()["predictions"][0]) == {"label", "probability"}


@pytest.mark.parametrize("kind", ["text/csv", "text/csv; charset=utf-8"])
def test_csv_is_the_same_rows(endpoint: Endpoint, kind: str):
    """What `DataFrame.to_csv` writes, columns in any order, gets the same predictions."""
    text = FRAME[COLUMNS[::-1]].to_csv(index=False)
    response = endpoint.client.post("/invocations", content=text.encode(), headers={"Content-Type": kind})
    assert labels_of(response) == LABELS


def test_csv_as_spreadsheets_write_it(endpoint: Endpoint):
    """A byte order mark is none of the first column's name; a line end within quotes, or one that only Unicode knows, ends
    no row."""
    odd = FRAME[COLUMNS].assign(note='a "quoted"\nnote\u2028of\x85lines').to_csv(index=False).encode("utf-8-sig")
    response = endpoint.client.post("/invocations", content=odd, headers={"Content-Type": "text/csv"})
    assert labels_of(response) == LABELS


def test_java_is_told_why_its_body_is_lost(endpoint: Endpoint):
    """Its client asks for HTTP/2 with the first request; what the parser drops then is not said to be bad JSON."""
    asks = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABk"}
    response = endpoint.client.post("/invocations", json={"instances": [[1, 2, 3, 4]]}, headers=asks)
    assert (response.status_code, response.headers["connection"]) == (400, "close")
    assert "does not upgrade to 'h2c'" in response.json()["error"]


def test_a_balancer_may_ask_by_head(endpoint: Endpoint):
    """Where GET is allowed HEAD is, and gets the same headers without a body; elsewhere it is a 405."""
    for path in ("/livez", "/readyz", "/"):
        head, get = endpoint.client.head(path), endpoint.client.get(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == get.headers["content-length"]
    assert endpoint.client.head("/invocations").status_code == 405


def test_ping_and_health(endpoint: Endpoint):
    """Both say what /readyz says."""
    assert endpoint.client.get("/ping").status_code == endpoint.client.get("/health").status_code == 200


SPLIT = {"columns": COLUMNS, "data": ROWS.tolist()}


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        ({}, "exactly one of dataframe_split"),
        ({"inputs": [[1]], "instances": [[1]]}, "exactly one of"),
        ({"dataframe_split": [1]}, "'columns' and 'data'"),
        ({"dataframe_split": SPLIT | {"columns": [1, 2, 3, 4]}}, "list of names"),
        ({"dataframe_split": SPLIT | {"columns": ["feature_0"] * 4}}, "must differ"),
        ({"dataframe_split": SPLIT | {"columns": [*COLUMNS[:3], "x"]}}, "columns are missing: feature_3"),
        ({"dataframe_split": SPLIT | {"data": [[1.0, 2.0]]}}, "rows of 4 values"),
        ({"dataframe_split": SPLIT | {"data": []}}, "no rows"),
        ({"dataframe_records": [{"feature_0": 1.0}]}, "row 0: columns are missing: feature_1, feature_2, feature_3"),
        ({"dataframe_records": [1]}, "row 0 is not an object"),
        ({"dataframe_records": {}}, "must be a list of rows"),
        ({"instances": []}, "no rows"),
        ({"instances": [1.0, 2.0, 3.0, 4.0]}, r"data of shape \[4\]"),
        ({"instances": [["a", "b", "c", "d"]]}, "something else than numbers"),
        ({"instances": [[1, 2, 3, None]]}, "something else than numbers"),
        ({"instances": [[1, 2, 3, 4], [1]]}, "same length"),
        ({"inputs": {"feature_0": [1.0]}}, "columns are missing: feature_1, feature_2, feature_3"),
        ({"inputs": dict.fromkeys(COLUMNS, 1.0)}, "lists of the same length"),
        ({"inputs": {name: [] for name in COLUMNS}}, "no rows"),
        ({"inputs": 5}, "must be a list of rows"),
    ],
)
def test_a_wrong_document_is_400_with_a_sentence(endpoint: Endpoint, document: dict[str, Any], sentence: str):
    """Shapes and names that do not fit are refused, and what is missing is named."""
    response = invoke(endpoint, **document)
    assert response.status_code == 400, response.text
    assert re.search(sentence, response.json()["error"]), response.text


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"", "first line"),
        (b"feature_0,feature_1,feature_2,feature_3\n", "no rows"),
        (b"feature_0,feature_1\n1,2\n", "columns are missing: feature_2, feature_3"),
        (b"feature_0,feature_1,feature_2,feature_3\n1,2,3\n", "row 1 of the CSV has 3 values"),
        (
            b"feature_0,feature_1,feature_2,feature_3\n1,2,3,x\n",
            "row 1 of the CSV has 'x' as 'feature_3', which is not a number",
        ),
        (b"feature_0,feature_1,feature_2,feature_3\n1,2,3,nan\n", "not finite"),
        (b'feature_0,"feature_1\n', "not CSV"),
        (b"\xff\xfe", "not CSV"),
        (b"feature_0,feature_1,feature_2,feature_3\n1,2,,4\n", "row 1 of the CSV has '' as 'feature_2'"),
    ],
)
def test_wrong_csv_is_400_with_a_sentence(endpoint: Endpoint, text: bytes, sentence: str):
    """Each way in which a CSV can be wrong has its own sentence."""
    response = endpoint.client.post("/invocations", content=text, headers={"Content-Type": "text/csv"})
    assert response.status_code == 400, response.text
    assert sentence in response.json()["error"]


def test_other_types_models_and_verbs(endpoint: Endpoint):
    """Parquet is 415, an unknown model 404, GET 405; text that is not JSON and NaN are 400."""
    client = endpoint.client
    assert (
        client.post("/invocations", content=b"PAR1", headers={"Content-Type": "application/x-parquet"}).status_code
        == 415
    )
    assert client.post("/invocations/cats", json={"inputs": ROWS.tolist()}).status_code == 404
    assert client.get("/invocations").status_code == 405
    assert client.post("/invocations", content=b"{", headers={"Content-Type": "application/json"}).status_code == 400
    text = json.dumps({"instances": [[float("nan")] * 4]})
    assert client.post("/invocations", content=text.encode()).status_code == 400


def test_several_models_are_named_in_the_path(endpoint: Endpoint, store: Store):
    """With more than one model `/invocations` says which paths there are; each of them answers."""
    number = roll_out(store, endpoint.name, publish_version(store, "3", classes=(10, 20, 30)), model="numbers").number
    endpoint.reach(number)
    response = invoke(endpoint, inputs=ROWS.tolist())
    assert response.status_code == 400
    assert "/invocations/<model>" in response.json()["error"]
    assert "digits, numbers" in response.json()["error"]
    numbers = endpoint.client.post("/invocations/numbers", json={"inputs": ROWS.tolist()})
    assert {record["label"] for record in numbers.json()["predictions"]} <= {10, 20, 30}
    assert labels_of(endpoint.client.post("/invocations/digits", json={"inputs": ROWS.tolist()})) == LABELS


RAW = {"colour": ["red", "blue", None, "green"], "size": [2.0, None, 3.5, 1.0], "weight": [1, 2, 3, 4]}
RAW_LABELS = [
    ("ant", "bee", "cat")[best] for best in LinearModel(7).outputs(MIXED.rows(RAW), MIXED).argmax(axis=1)
]  # fmt: skip
RECORDS = [dict(zip(RAW, row, strict=True)) for row in zip(*RAW.values(), strict=True)]


@pytest.mark.parametrize(
    "document",
    [
        {"inputs": RAW},
        {"dataframe_records": RECORDS},
        {"instances": RECORDS},
        {"instances": [list(record.values()) for record in RECORDS]},
        {"dataframe_split": {"columns": ["weight", "colour", "size"],
                             "data": [[one["weight"], one["colour"], one["size"]] for one in RECORDS]}},
    ],
    ids=["columns", "records", "objects", "lists", "split"],
)  # fmt: skip
def test_texts_and_gaps_go_through_the_fitted_transform(mixed: Endpoint, document: dict[str, Any]):
    """In every JSON shape a text, an unknown text and a gap mean what they meant in training."""
    assert labels_of(mixed.client.post("/invocations", json=document)) == RAW_LABELS


def test_texts_and_gaps_in_csv(mixed: Endpoint):
    """An empty cell is a gap; columns go by their names."""
    body = pd.DataFrame(RAW)[["size", "colour", "weight"]].to_csv(index=False)
    answer = mixed.client.post("/invocations", content=body, headers={"Content-Type": "text/csv"})
    assert labels_of(answer) == RAW_LABELS


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"inputs": {"colour": ["red"], "size": [1.0]}}, "columns are missing: weight"),
        ({"inputs": {"colour": ["red"], "size": [1.0], "weight": [None]}}, "column 'weight' has no value in row 0"),
        ({"inputs": {"colour": ["red"], "size": [1.0], "weight": ["heavy"]}}, "'heavy', which is not a number"),
        ({"inputs": {"colour": ["red", "blue"], "size": [1.0], "weight": [2.0]}}, "different lengths"),
        ({"inputs": {"colour": "red", "size": 1.0, "weight": 2.0}}, "must be lists"),
        ({"instances": [["red", 1.0]]}, "a list of 3 values"),
        ({"instances": [["red", 1.0, 2.0], {"colour": "red"}]}, "a list of 3 values"),
        ({"inputs": {"colour": [{"a": 1}], "size": [[1.0]], "weight": [2.0]}}, "column 'colour' holds a list"),
        ({"inputs": {"colour": [], "size": [], "weight": []}}, "no rows"),
    ],
)
def test_raw_rows_that_cannot_be_read_are_400(mixed: Endpoint, document: dict[str, Any], words: str):
    """The sentence names the column."""
    answer = mixed.client.post("/invocations", json=document)
    assert answer.status_code == 400, answer.text
    assert words in answer.json()["error"]
