"""A classifier of texts behind the training: compressed, judged, served. Real forms, a real verdict, real clients."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest
import tritonclient.http as triton

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Catalog, Origin
from modelyard.compress import CompressConfig, DynamicInt8, MeasureConfig, compress
from modelyard.datasets import Dataset
from modelyard.evaluate import EvaluateConfig, evaluate, refusal
from modelyard.model_package import ModelPackage
from modelyard.predict import PredictConfig, predict
from modelyard.revisions import ServedVersion
from modelyard.serve.batching import Batcher
from modelyard.serve.limits import Limits
from modelyard.serve.recorder import Batch, parquet
from modelyard.serve.recording import INPUTS, MOMENT, REQUEST_ID, Schema
from modelyard.serve.running import _Awaited
from modelyard.settings import Settings
from modelyard.signing.sign import sign_release
from modelyard.storage import Store
from tests.serve.inprocess import Inside, endpoint
from tests.textbench import network_folder, quick_text_model, text_config, text_dataset
from tests.workbench import csv_bytes, upload


@dataclass(frozen=True, kw_only=True)
class Chain:
    catalog: Catalog
    dataset: ArtifactRef
    package: ArtifactRef
    verdict: ArtifactRef
    folder: Path

    @property
    def texts(self) -> list[str]:
        opened = Dataset.fetch(self.catalog, self.dataset, self.folder / "data", ["test"])
        return list(next(opened.frames("test"))["text"])

    def expected(self, texts: list[str], form: str = "int8-dynamic") -> tuple[list[str], np.ndarray]:
        """Labels and raw outputs of the package itself, text by text."""
        package = ModelPackage.open(self.folder / "package", form)
        outputs = np.concatenate([package.outputs(package.transform.rows({"text": [text]})) for text in texts])
        return list(package.decode(outputs)["label"]), outputs


@pytest.fixture(scope="module")
def chain(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    folder, catalog, left = tmp_path_factory.mktemp("chain"), Catalog(store), set(Path.cwd().iterdir())
    source = network_folder(folder / "tiny")
    dataset = text_dataset(catalog, text_config(f"file://{source}"))
    model = quick_text_model(catalog, dataset, source)
    small = CompressConfig(
        techniques=[DynamicInt8()], default_form="int8-dynamic", measure=MeasureConfig(repeats=3, batches=[1, 5])
    )
    package = compress(catalog, model, dataset, small, Origin()).ref
    judged = evaluate(
        catalog, package, dataset, None,
        EvaluateConfig(floor=0.5, allowed_drop_against_float=0.1, allowed_drop_when_disturbed=1.0, resamples=200), Origin(),
    )  # fmt: skip
    assert refusal(judged.manifest) is None
    assert {path.suffix for path in set(Path.cwd().iterdir()) - left} <= {""}, "a library left files behind"
    catalog.fetch(package, folder / "package")
    return Chain(catalog=catalog, dataset=dataset, package=package, verdict=judged.ref, folder=folder)


def test_every_form_computes_what_was_trained(chain: Chain):
    """ONNX with open batch and sequence, float to 1e-4 of the largest output whatever a text comes with; int8 in a
    smaller file."""
    manifest = chain.catalog.manifest(chain.package)
    parity = manifest.provenance.measurements["parity"]
    assert parity["float"]["largest_difference"] < 1e-4
    assert parity["float"]["agreement_fraction"] == 1.0
    texts = chain.texts[:9]
    package = ModelPackage.open(chain.folder / "package", "float")
    together = package.outputs(package.transform.rows({"text": texts}))
    np.testing.assert_allclose(together, chain.expected(texts, "float")[1], atol=1e-5)
    sizes = manifest.content.facts["size_bytes"]
    assert sizes["int8-dynamic"] < sizes["float"]


def test_a_verdict_shows_what_texts_do_to_the_model(chain: Chain):
    """Typos, missing words and capitals take the place of noise, nobody attacks tokens, and the word that decides is the
    one that the answer rests on."""
    verdict = json.loads(chain.catalog.read(chain.verdict, "verdict.json"))
    assert set(verdict["disturbed"]) == {"undisturbed", "typos", "missing words", "capitals"}
    calm = verdict["disturbed"]["undisturbed"]["candidate"]
    assert verdict["disturbed"]["typos"]["candidate"] <= calm == verdict["disturbed"]["capitals"]["candidate"]
    assert verdict["attacked"] == {}
    assert any("nobody attacked it" in note for note in verdict["notes"])
    page = chain.catalog.read(chain.verdict, "report.html").decode()
    assert "A slip of the fingers" in page
    assert "spoke for (red)" in page


def test_a_data_set_of_texts_is_answered_without_the_endpoint(chain: Chain):
    """Batch prediction gives the package's own labels, shard by shard; raw files with a column of texts are as good."""
    done = predict(
        chain.catalog, chain.package, chain.dataset, PredictConfig(batch_rows=7), Origin(), model_name="moods"
    )
    table = pd.read_parquet(BytesIO(chain.catalog.store.get(f"{done.uri}/part-000000.parquet")))
    labels, _ = chain.expected(chain.texts)
    assert np.mean(table["label"].to_numpy() == np.array(labels)) > 0.95  # int8 ranges are those of what comes together
    raw = upload(
        chain.catalog.store, {"rows.csv": csv_bytes(pd.DataFrame({"text": ["007", "lovely"], "more": [1, 2]}))}
    )
    asked = predict(chain.catalog, chain.package, raw, PredictConfig(form="float"), Origin(), model_name="moods")
    table = pd.read_parquet(BytesIO(chain.catalog.store.get(f"{asked.uri}/part-000000.parquet")))
    assert table["label"].tolist() == chain.expected(["007", "lovely"], "float")[0]


async def test_texts_of_any_length_are_one_call():
    """Rows of tokens that wait together are filled up and asked together; rows of numbers of another width are not."""
    asked: list[np.ndarray] = []

    async def infer(rows: np.ndarray) -> dict[str, Any]:
        asked.append(rows)
        return {"sum": rows.sum(axis=1)}

    batcher = Batcher(infer, Limits())
    texts = [_Awaited(), _Awaited()]
    batcher.submit(texts[0], np.array([[2, 3]]))
    batcher.submit(texts[1], np.array([[2, 5, 6, 3]]))
    await asyncio.gather(*(one.answer for one in texts))
    assert [rows.tolist() for rows in asked] == [[[2, 3, -1, -1], [2, 5, 6, 3]]]
    numbers = [_Awaited(), _Awaited()]
    batcher.submit(numbers[0], np.ones((1, 2)))
    batcher.submit(numbers[1], np.ones((1, 3)))
    await asyncio.gather(*(one.answer for one in numbers))
    assert [rows.shape for rows in asked[1:]] == [(1, 2), (1, 3)]


def test_the_prediction_log_keeps_tokens():
    """A row of a text is as long as the text; what is redacted has not come."""
    schema = Schema(
        endpoint="e", replica="r", model="m", version="1", digest="d", form="f", columns=["text"], redacted=[]
    )
    moment = np.array([0.0, 0.001])
    records: list[dict[str, Any]] = [
        {REQUEST_ID: ["a"], MOMENT: moment, INPUTS: np.array([[2, 5, 3], [2, 3, -1]]), "label": ["good", "bad"]},
        {REQUEST_ID: ["b"], MOMENT: moment, INPUTS: np.array([[2, 3]]), "label": ["odd"]},
    ]
    table = pd.read_parquet(BytesIO(parquet(Batch(schema, records))))
    assert [list(tokens) for tokens in table["in.text"]] == [[2, 5, 3], [2, 3], [2, 3]]
    assert table["out.label"].tolist() == ["good", "bad", "odd"]


def _served(chain: Chain, settings: Settings) -> ServedVersion:
    sign_release(chain.catalog.store, settings, chain.package, chain.verdict)
    return ServedVersion(version="1", artifact=chain.package, form="int8-dynamic", verdict=chain.verdict, weight=100.0)


async def test_clients_ask_with_texts_or_with_tokens(chain: Chain, settings: Settings, store: Store, tmp_path: Path):
    """MLflow's protocol in its shapes, v2 with texts, tokens and masks, JSON and binary by tritonclient: one answer; it
    is the package's own. Texts of any length that come together are answered together."""
    async with endpoint(settings, store, _served(chain, settings), tmp_path) as inside:
        await _asked_by_mlflow(chain, inside)
        await _asked_by_v2(chain, inside)
        await _refused(inside)
        async with inside.listening() as port:
            await asyncio.to_thread(_asked_by_triton, chain, port)


async def _asked_by_mlflow(chain: Chain, inside: Inside) -> None:
    texts = chain.texts[:6]
    labels, _ = chain.expected(texts)
    shapes: list[dict[str, Any]] = [
        {"dataframe_records": [{"text": text} for text in texts]},
        {"dataframe_split": {"columns": ["text"], "data": [[text] for text in texts]}},
        {"inputs": {"text": texts}},
        {"instances": [{"text": text} for text in texts]},
    ]
    alone = [{"dataframe_records": [{"text": text}]} for text in texts]
    answers = await asyncio.gather(*(inside.client.post("/invocations", json=body) for body in (*shapes, *alone)))
    found = [[row["label"] for row in answer.json()["predictions"]] for answer in answers]
    assert found[: len(shapes)] == [labels] * len(shapes)
    assert [label for (label,) in found[len(shapes) :]] == labels
    csv = pd.DataFrame({"text": texts}).to_csv(index=False)
    answer = await inside.client.post("/invocations", content=csv, headers={"content-type": "text/csv"})
    assert [row["label"] for row in answer.json()["predictions"]] == labels


async def _asked_by_v2(chain: Chain, inside: Inside) -> None:
    texts = chain.texts[:3]
    labels, outputs = chain.expected(texts)
    package = ModelPackage.open(chain.folder / "package")
    rows = package.transform.rows({"text": texts})
    mask = (rows >= 0).astype(int)

    def tensor(name: str, values: Any, datatype: str = "INT64") -> dict[str, Any]:
        return {
            "name": name,
            "datatype": datatype,
            "shape": list(np.shape(values)),
            "data": np.asarray(values).tolist(),
        }

    for inputs in (
        [tensor("text", texts, "BYTES")],
        [tensor("text", [[text] for text in texts], "BYTES")],
        [tensor("attention_mask", mask), tensor("input_ids", np.where(rows < 0, 0, rows))],
        [tensor("features", rows)],
    ):
        answer = await inside.client.post("/v2/models/digits/infer", json={"inputs": inputs})
        assert answer.status_code == 200, answer.text
        found = {output["name"]: output["data"] for output in answer.json()["outputs"]}
        assert found["label"] == labels
        np.testing.assert_allclose(
            np.reshape(found["outputs"], outputs.shape), outputs, atol=0.05 * np.abs(outputs).max()
        )
    described = (await inside.client.get("/v2/models/digits")).json()["inputs"]
    assert [(one["name"], one["datatype"]) for one in described] == [("text", "BYTES")]
    schema = (await inside.client.get("/openapi.json")).json()["components"]["schemas"]["InferRequest"]
    assert "BYTES" in schema["properties"]["inputs"]["items"]["properties"]["datatype"]["enum"]


async def _refused(inside: Inside) -> None:
    def infer(*inputs: dict[str, Any]) -> httpx.Request:
        return inside.client.build_request("POST", "/v2/models/digits/infer", json={"inputs": list(inputs)})

    def invoke(body: Any) -> httpx.Request:
        return inside.client.build_request("POST", "/invocations", json=body)

    ids = {"name": "input_ids", "datatype": "INT64", "shape": [1, 2], "data": [2, 3]}
    for request, words in [
        (invoke({"dataframe_records": [{"words": "fine"}]}), "columns are missing: text"),
        (invoke({"dataframe_records": [{"text": None}]}), "column 'text' has no text in row 0"),
        (invoke({"inputs": {"text": []}}), "there are no rows"),
        (invoke({"dataframe_records": [{"text": ["a", "b"]}]}), "holds a list"),
        (infer({**ids, "data": [2, 9999]}), "a token's number lies outside"),
        (infer({**ids, "shape": [1, 30], "data": [5] * 30}), "a row has 30 tokens, the model reads 24 at most"),
        (infer(ids, {**ids, "name": "attention_mask", "shape": [1, 1], "data": [1]}), "has the shape"),
        (infer(ids, {**ids, "name": "attention_mask", "data": [0, 0]}), "a row has no token"),
        (infer({**ids, "name": "words"}), "the inputs must be 'text' (BYTES), or 'input_ids'"),
        (invoke({"inputs": {"text": ["dull " * 2_000] * 800}}), "the texts have 1,228,800 characters"),
        (infer({"name": "text", "datatype": "FP32", "shape": [1], "data": [1.5]}), "of datatype BYTES"),
        (infer({"name": "text", "datatype": "BYTES", "shape": [2], "data": ["one"]}), "does not fit 1 texts"),
    ]:
        answer = await inside.client.send(request)
        assert answer.status_code == 400, words
        assert words in answer.json()["error"]


def _asked_by_triton(chain: Chain, port: int) -> None:
    texts = [*chain.texts[:2], "très bon"]
    labels, _ = chain.expected(texts)
    client = triton.InferenceServerClient(f"127.0.0.1:{port}")
    for is_binary in (True, False):
        given = triton.InferInput("text", [len(texts)], "BYTES")
        given.set_data_from_numpy(np.array(texts, dtype=object), binary_data=is_binary)
        answer = client.infer("digits", [given]).as_numpy("label")
        assert answer is not None
        assert [label.decode() for label in answer] == labels
    client.close()
