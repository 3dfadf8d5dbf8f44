"""A model that finds spans of texts behind its training: compressed, judged, asked. Real forms, a real verdict, real clients."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pytest
import tritonclient.http as triton
from onnx import TensorProto, helper, numpy_helper

from commands.prediction import _told
from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Attempt, Catalog, Origin, Work
from modelyard.compress import CompressConfig, DynamicInt8, MeasureConfig, compress
from modelyard.datasets import TARGET_FILE, TRANSFORM_FILE, Dataset
from modelyard.errors import ConfigError, Refused
from modelyard.evaluate import EvaluateConfig, evaluate, refusal
from modelyard.model_package import PACKAGE_FILE, ModelPackage, PackageSpec
from modelyard.models import HuggingFaceConfig
from modelyard.predict import PredictConfig, predict
from modelyard.revisions import ServedVersion
from modelyard.runtime import RuntimeSpec
from modelyard.serve.admission import refuse_other_schemas
from modelyard.serve.batching import Batcher
from modelyard.serve.limits import Limits
from modelyard.serve.probe import GoldenRows, refuse_unless_golden
from modelyard.serve.recorder import Batch, parquet
from modelyard.serve.recording import INPUTS, MOMENT, REQUEST_ID, Schema
from modelyard.serve.running import _Awaited, version_key
from modelyard.serve.worker_info import WorkerInfo
from modelyard.settings import Settings
from modelyard.signing.sign import sign_release
from modelyard.storage import Store
from modelyard.task_kinds import Target
from modelyard.token_labels import labels_of
from modelyard.train import OptimizerConfig, TrainConfig, train
from modelyard.transform import TextTransform, read_row_transform
from tests.serve.inprocess import Inside, endpoint
from tests.tagbench import spans_jsonl, tag_config, tag_dataset
from tests.textbench import MOODS, network_folder, tokenizer_folder
from tests.workbench import upload

LENIENT = EvaluateConfig(metric="span_f1", floor=0.1, allowed_drop_against_float=0.5, resamples=200)


@dataclass(frozen=True, kw_only=True)
class Chain:
    catalog: Catalog
    dataset: ArtifactRef
    package: ArtifactRef
    verdict: ArtifactRef
    folder: Path

    @property
    def rows(self) -> pd.DataFrame:
        opened = Dataset.fetch(self.catalog, self.dataset, self.folder / "data", ["test"])
        return next(opened.frames("test"))

    def expected(self, texts: list[str]) -> list[list[dict[str, Any]]]:
        """Entities of the package itself, text by text."""
        package = ModelPackage.open(self.folder / "package", "float")
        return [package.predict(pd.DataFrame({"text": [text]}))["entities"].iloc[0] for text in texts]


@pytest.fixture(scope="module")
def chain(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """A network that tells each token's tag by the token alone, so it cannot tell beginnings from insides."""
    folder, catalog = tmp_path_factory.mktemp("chain"), Catalog(store)
    dataset = tag_dataset(catalog, tag_config(f"file://{tokenizer_folder(folder / 'tiny')}", keep=["source"]))
    package = _by_token_alone(catalog, dataset)
    sliced = LENIENT.model_copy(update={"slices": ("source",)})
    judged = evaluate(catalog, package, dataset, package, sliced, Origin())
    assert refusal(judged.manifest) is None
    catalog.fetch(package, folder / "package")
    return Chain(catalog=catalog, dataset=dataset, package=package, verdict=judged.ref, folder=folder)


def _by_token_alone(catalog: Catalog, dataset: ArtifactRef) -> ArtifactRef:
    """A package as compression makes one, with a table of scores for a network."""
    target = Target.model_validate_json(catalog.read(dataset, TARGET_FILE))
    body = catalog.read(dataset, TRANSFORM_FILE)
    reader = read_row_transform(body)
    assert isinstance(reader, TextTransform)
    table = np.random.default_rng(0).normal(size=(reader.vocabulary, len(target.classes))).astype(np.float32)
    table[:, 0] += 5.0
    for number, mood in enumerate(labels_of(target.classes)):
        for word in MOODS[mood]:
            table[reader.reader.token_to_id(word), 2 * number + 1] += 9.0
    spec = PackageSpec(
        target=target, forms={"float": RuntimeSpec(file="float.onnx", precision="fp32")}, default_form="float"
    )

    def build(attempt: Attempt) -> None:
        onnx.save(_graph(table), attempt.scratch / "float.onnx")
        attempt.add("float.onnx", attempt.scratch / "float.onnx")
        attempt.add_json(PACKAGE_FILE, spec.model_dump(mode="json"))
        attempt.add_json(TRANSFORM_FILE, json.loads(body))

    work = Work(kind="compressed", config={"table": "tags"}, inputs={"dataset": dataset}, code_version="test")
    return catalog.produce(work, build, Origin()).ref


def _graph(table: np.ndarray) -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("Clip", ["features", "least"], ["ids"]),
            helper.make_node("Gather", ["table", "ids"], ["outputs"]),
        ],
        "table",
        [value("features", TensorProto.INT64, ["n", "t"])],
        [value("outputs", TensorProto.FLOAT, ["n", "t", table.shape[1]])],
        [numpy_helper.from_array(table, "table"), numpy_helper.from_array(np.array(0, dtype=np.int64), "least")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def test_outputs_are_those_of_each_token(chain: Chain):
    """As wide as the rows that were given; what a text comes with does not show, and places without a token say nothing."""
    package = ModelPackage.open(chain.folder / "package")
    rows = package.transform.rows({"text": list(chain.rows["text"][:9])})
    together = package.outputs(np.pad(rows, ((0, 0), (0, 2)), constant_values=-1))
    assert together.shape == (9, rows.shape[1] + 2, 7)
    assert not together[:, -2:].any()
    for row, outputs in zip(rows, together, strict=True):
        alone = package.outputs(row[None, row >= 0])
        np.testing.assert_array_equal(outputs[: alone.shape[1]], alone[0])


@pytest.mark.soak
async def test_spans_go_the_whole_way(settings: Settings, store: Store, tmp_path: Path):
    """From rows in the bucket to entities of the endpoint: preprocessed, trained by two ranks, compressed to float and int8
    with open batch and sequence, judged, signed, served; what was trained for is found."""
    folder, catalog = tmp_path / "chain", Catalog(store)
    source = network_folder(folder / "tiny")
    dataset = tag_dataset(catalog, tag_config(f"file://{source}"))
    config = TrainConfig(
        model=HuggingFaceConfig(kind="huggingface", source=f"file://{source}"),
        optimizer=OptimizerConfig(name="adamw", learning_rate=0.01),
        batch_size=16,
        max_epochs=30,
        silence_seconds=60,
    )
    model = train(catalog, dataset, config, Origin(), lambda _: None).ref
    small = CompressConfig(
        techniques=[DynamicInt8()], default_form="float", measure=MeasureConfig(repeats=3, batches=[1, 5])
    )
    made = compress(catalog, model, dataset, small, Origin())
    parity = made.manifest.provenance.measurements["parity"]
    assert parity["float"]["largest_difference"] < 1e-4
    assert parity["float"]["agreement_fraction"] == 1.0
    judged = evaluate(
        catalog, made.ref, dataset, None, LENIENT.model_copy(update={"form": "int8-dynamic", "floor": 0.7}), Origin()
    )
    assert refusal(judged.manifest) is None
    catalog.fetch(made.ref, folder / "package")
    chain = Chain(catalog=catalog, dataset=dataset, package=made.ref, verdict=judged.ref, folder=folder)
    sign_release(store, settings, made.ref, judged.ref)
    served = ServedVersion(version="1", artifact=made.ref, form="int8-dynamic", verdict=judged.ref, weight=100.0)
    rows = chain.rows
    async with endpoint(settings, store, served, tmp_path / "home") as inside:
        answer = await inside.client.post("/invocations", json={"inputs": {"text": list(rows["text"])}})
    told = [
        {(one["start"], one["end"], one["label"]) for one in row["entities"]} for row in answer.json()["predictions"]
    ]
    truth = [{(one["start"], one["end"], one["label"]) for one in json.loads(kept)} for kept in rows["spans"]]
    right = sum(len(own & other) for own, other in zip(truth, told, strict=True))
    assert 2 * right / (sum(map(len, truth)) + sum(map(len, told))) > 0.7


def test_a_verdict_counts_entities(chain: Chain):
    """The score of the test split is what counting whole entities by hand gives; it has an interval over texts, each label
    has one, the model is as good as itself, and the page shows where it fails."""
    rows, verdict, metrics = (
        chain.rows,
        *(json.loads(chain.catalog.read(chain.verdict, name)) for name in ("verdict.json", "metrics.json")),
    )
    truth = [{(one["start"], one["end"], one["label"]) for one in json.loads(kept)} for kept in rows["spans"]]
    found = [{(one["start"], one["end"], one["label"]) for one in some} for some in chain.expected(list(rows["text"]))]
    right = sum(len(own & other) for own, other in zip(truth, found, strict=True))
    expected = 2 * right / (sum(map(len, truth)) + sum(map(len, found)))
    candidate = metrics["candidate"]
    assert candidate["span_f1"] == pytest.approx(expected)
    assert expected > 0.3
    score = verdict["scores"]["candidate"]
    assert score["low"] < score["value"] < score["high"] or expected == 1.0
    assert [one["label"] for one in candidate["entities"]["labels"]] == ["bad", "good", "odd"]
    assert all(
        one["interval"]["low"] <= one["f1"] <= one["interval"]["high"] for one in candidate["entities"]["labels"]
    )
    assert verdict["comparison"]["difference"]["value"] == 0.0
    assert verdict["comparison"]["probability_better"] == 0.5
    slices = {one["name"]: one for one in verdict["slices"]}
    assert set(slices) == {"source = web", "source = mail"}
    assert {name: one["rows"] for name, one in slices.items()} == {
        f"source = {name}": count for name, count in rows["source"].value_counts().items()
    }
    assert all(one["champion"] == one["score"]["value"] for one in slices.values())
    assert any("nobody disturbed it" in note for note in verdict["notes"])
    worst = candidate["entities"]["worst"]
    by_text = {text: len(own ^ other) for text, own, other in zip(rows["text"], truth, found, strict=True)}
    assert [one["errors"] for one in worst] == sorted((n for n in by_text.values() if n), reverse=True)[: len(worst)]
    page = chain.catalog.read(chain.verdict, "report.html").decode()
    assert "By label" in page
    assert "Texts with most errors" in page


def test_what_is_not_about_spans_is_refused(chain: Chain):
    """A metric of another task, a column to slice by that is not there, and a gate that nobody can compute."""
    catalog, package, dataset = chain.catalog, chain.package, chain.dataset
    with pytest.raises(ConfigError, match="token_classification has no accuracy; it has span_f1"):
        evaluate(catalog, package, dataset, None, LENIENT.model_copy(update={"metric": "accuracy"}), Origin())
    with pytest.raises(ConfigError, match="no column 'city'"):
        evaluate(catalog, package, dataset, None, LENIENT.model_copy(update={"slices": ("city",)}), Origin())
    gated = LENIENT.model_copy(update={"allowed_drop_when_disturbed": 0.5, "floor": 0.99, "resamples": 201})
    refused = refusal(evaluate(catalog, package, dataset, None, gated, Origin()).manifest)
    assert refused is not None
    assert "span_f1 when disturbed" in str(refused)
    assert "0.99" in str(refused)


async def test_clients_ask_for_entities(chain: Chain, settings: Settings, store: Store, tmp_path: Path):
    """MLflow's protocol gives entities with their characters, v2 the tag, its probability and the outputs of each token, as
    JSON and binary; texts of any length that come together are answered together, each as wide as itself."""
    sign_release(store, settings, chain.package, chain.verdict)
    served = ServedVersion(version="1", artifact=chain.package, form="float", verdict=chain.verdict, weight=100.0)
    async with endpoint(settings, store, served, tmp_path) as inside:
        await _asked_by_mlflow(chain, inside)
        await _asked_by_v2(chain, inside)
        async with inside.listening() as port:
            await asyncio.to_thread(_asked_by_triton, chain, port)


async def _asked_by_mlflow(chain: Chain, inside: Inside) -> None:
    texts = [*chain.rows["text"][:6], "très lovely, great", ""]
    bodies = [
        {"dataframe_records": [{"text": text} for text in texts]},
        *({"inputs": {"text": [text]}} for text in texts),
    ]
    answers = await asyncio.gather(*(inside.client.post("/invocations", json=body) for body in bodies))
    found = [[row["entities"] for row in answer.json()["predictions"]] for answer in answers]
    expected = chain.expected(texts)
    assert expected[-1] == []
    assert any(expected)
    for some in (found[0], [one for (one,) in found[1:]]):
        for text, own, other in zip(texts, some, expected, strict=True):
            keys = ("start", "end", "label", "text")
            assert [[one[key] for key in keys] for one in own] == [[one[key] for key in keys] for one in other]
            assert [one["score"] for one in own] == pytest.approx([one["score"] for one in other], abs=1e-4)
            assert all(text[one["start"] : one["end"]] == one["text"] for one in own)


async def _asked_by_v2(chain: Chain, inside: Inside) -> None:
    texts = list(chain.rows["text"][:3])
    package = ModelPackage.open(chain.folder / "package", "float")
    rows = package.transform.rows({"text": texts})
    outputs = package.outputs(rows)
    tensors = [
        {"name": "text", "datatype": "BYTES", "shape": [3], "data": texts},
        {"name": "features", "datatype": "INT64", "shape": list(rows.shape), "data": rows.tolist()},
    ]
    asked = [inside.client.post("/v2/models/digits/infer", json={"inputs": [tensor]}) for tensor in tensors]
    for answer in await asyncio.gather(*asked):
        assert answer.status_code == 200, answer.text
        told = {one["name"]: one for one in answer.json()["outputs"]}
        assert told["outputs"]["shape"] == list(outputs.shape)
        assert told["tag"]["shape"] == told["probability"]["shape"] == list(rows.shape)
        np.testing.assert_allclose(np.reshape(told["outputs"]["data"], outputs.shape), outputs, atol=1e-4)
        tags = np.reshape(told["tag"]["data"], rows.shape)
        assert (tags == outputs.argmax(axis=2))[rows >= 0].all()
        summary = _told({name: one["data"] for name, one in told.items()}, rows)
        assert summary[0] == f"{int((tags[0] > 0)[rows[0] >= 0].sum())} of {int((rows[0] >= 0).sum())} tokens in spans"
    described = (await inside.client.get("/v2/models/digits")).json()["outputs"]
    assert {one["name"]: one["shape"] for one in described} == {
        "tag": [-1, -1], "probability": [-1, -1], "outputs": [-1, -1, 7]
    }  # fmt: skip


def _asked_by_triton(chain: Chain, port: int) -> None:
    texts = list(chain.rows["text"][:2])
    package = ModelPackage.open(chain.folder / "package", "float")
    client = triton.InferenceServerClient(f"127.0.0.1:{port}")
    given = triton.InferInput("text", [2], "BYTES")
    given.set_data_from_numpy(np.array(texts, dtype=object), binary_data=True)
    answer = client.infer("digits", [given]).as_numpy("outputs")
    np.testing.assert_allclose(answer, package.outputs(package.transform.tokens(texts)), atol=1e-4)
    client.close()


def test_entities_of_a_data_set_without_the_endpoint(chain: Chain):
    """Batch prediction gives a list a row, with its type even where the first texts have none."""
    done = predict(
        chain.catalog, chain.package, chain.dataset, PredictConfig(batch_rows=7), Origin(), model_name="spans"
    )
    table = pd.read_parquet(BytesIO(chain.catalog.store.get(f"{done.uri}/part-000000.parquet")))
    assert [list(some) for some in table["entities"]] == chain.expected(list(chain.rows["text"]))
    raw = upload(chain.catalog.store, {"rows.jsonl": b'{"text": ""}\n' * 3 + spans_jsonl(2)})
    asked = predict(chain.catalog, chain.package, raw, PredictConfig(batch_rows=2), Origin(), model_name="spans")
    table = pd.read_parquet(BytesIO(chain.catalog.store.get(f"{asked.uri}/part-000000.parquet")))
    assert [len(some) for some in table["entities"]][:3] == [0, 0, 0]


def test_a_version_that_tags_otherwise_is_refused():
    """One token of one golden row is enough; the place is named."""
    golden = GoldenRows(rows=[[2.0, 3.0]], outputs=[[[0.0, 1.0], [1.0, 0.0]]], tolerance=0.1, form="float")
    refuse_unless_golden("x", golden, "float", np.array(golden.outputs))
    with pytest.raises(Refused, match=r"1 of 1 golden rows differ: row 0, output 1, 0 is 3, evaluated was 1"):
        refuse_unless_golden("x", golden, "float", np.array([[[0.0, 1.0], [3.0, 0.0]]]))


def test_a_canary_with_other_tags_is_refused():
    """A number of a tag would mean something else from one request to the next."""
    ref = ArtifactRef(uri="s3://x", digest="a" * 64, kind="compressed")
    served = [ServedVersion(version=number, artifact=ref, form="f", verdict=ref, weight=50.0) for number in ("1", "2")]
    outputs = [("tag", "INT64", 0)]
    infos = [WorkerInfo(columns=["text"], outputs=outputs, tags=tags) for tags in (["O", "B-a"], ["O", "B-b"])]
    running = {version_key("m", one): SimpleNamespace(info=info) for one, info in zip(served, infos, strict=True)}
    revision = SimpleNamespace(models={"m": SimpleNamespace(rollout=True, versions=served)})
    with pytest.raises(Refused, match=r"its tags are \['O', 'B-b'\], those of the version that serves \['O', 'B-a'\]"):
        refuse_other_schemas(revision, running)


async def test_answers_are_as_wide_as_their_own_text():
    """What came together in one call is cut apart again: a short text's answer has no places of a longer one."""

    async def infer(rows: np.ndarray) -> dict[str, Any]:
        return {"tag": rows, "outputs": np.zeros((*rows.shape, 7), dtype=np.float32)}

    batcher = Batcher(infer, Limits())
    waiting = [_Awaited(), _Awaited()]
    batcher.submit(waiting[0], np.array([[2, 3]]))
    batcher.submit(waiting[1], np.array([[2, 5, 6, 3]]))
    found = await asyncio.gather(*(one.answer for one in waiting))
    assert [one["outputs"].shape for one in found] == [(1, 2, 7), (1, 4, 7)]
    assert [one["tag"].tolist() for one in found] == [[[2, 3]], [[2, 5, 6, 3]]]


def test_the_prediction_log_keeps_answers_of_tokens():
    """A list a row, whatever the width of the request."""
    schema = Schema(
        endpoint="e", replica="r", model="m", version="1", digest="d", form="f", columns=["text"], redacted=[], by_token=True
    )  # fmt: skip
    moment = np.array([0.0, 0.001])
    records: list[dict[str, Any]] = [
        {REQUEST_ID: ["a"], MOMENT: moment, INPUTS: np.array([[2, 5, 3]]), "tag": np.array([[0, 1, 0]]),
         "outputs": np.ones((1, 3, 2), dtype=np.float32)},
        {REQUEST_ID: ["b"], MOMENT: moment, INPUTS: np.array([[2, 3]]), "tag": np.array([[0, 0]]),
         "outputs": np.ones((1, 2, 2), dtype=np.float32)},
    ]  # fmt: skip
    table = pd.read_parquet(BytesIO(parquet(Batch(schema, records))))
    assert [list(tags) for tags in table["out.tag"]] == [[0, 1, 0], [0, 0]]
    assert [len(outputs) for outputs in table["out.outputs"]] == [3, 2]
