"""OpenAI's client at the endpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import openai
import pytest
from onnx import TensorProto, helper, numpy_helper

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Attempt, Catalog, Origin, Work
from modelyard.model_package import PACKAGE_FILE, TRANSFORM_FILE, PackageSpec
from modelyard.pretrained import plain_tokenizer
from modelyard.revisions import ServedVersion
from modelyard.runtime import RuntimeSpec
from modelyard.serve.keys import add_key
from modelyard.settings import Settings
from modelyard.signing.sign import sign_release
from modelyard.storage import Store
from modelyard.task_kinds import Target
from modelyard.transform import TextTransform
from tests.serve.inprocess import endpoint
from tests.serve.packages import publish_version
from tests.textbench import tokenizer_folder


async def test_the_openai_client_lists_the_models(settings: Settings, store: Store, tmp_path: Path):
    """With a key of the endpoint as its API key it lists and retrieves what is served; an unknown model and a wrong key
    are errors of its own kinds."""
    secret = add_key(tmp_path / "endpoint" / "keys.json", "alice", ["predict"], None)
    version = publish_version(store, "1")
    async with endpoint(settings, store, version, tmp_path, keys="required") as inside, inside.listening() as port:

        def client(key: str) -> openai.AsyncOpenAI:
            return openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key, max_retries=0)

        async with client(secret) as known, client("my_wrong") as unknown:
            assert [model.id async for model in known.models.list()] == ["digits"]
            found = await known.models.with_raw_response.retrieve("digits")
            assert found.parse().owned_by == "modelyard"
            assert found.parse().created > 1_700_000_000
            assert found.headers["Modelyard-Model-Version"] == "1"
            with pytest.raises(openai.NotFoundError) as refused:
                await known.models.retrieve("nobody")
            assert "serves no model 'nobody'" in str(refused.value.response.text)
            with pytest.raises(openai.AuthenticationError):
                await unknown.models.list()


# -- embeddings ---------------------------------------------------------------------------------------

TABLE = np.random.default_rng(0).normal(size=(80, 5)).astype(np.float32)


def expected(transform: TextTransform, texts: list[str]) -> np.ndarray:
    """Mean of the vectors of a text's tokens."""
    return np.stack([TABLE[row[row >= 0]].mean(axis=0) for row in transform.tokens(texts)])


def save_means(path: Path) -> None:
    """The same as ONNX, of tokens (n, t), below 0 where there is none."""
    nodes = [
        helper.make_node("Max", ["x", "zero"], ["ids"]),
        helper.make_node("Gather", ["table", "ids"], ["vectors"]),
        helper.make_node("GreaterOrEqual", ["x", "zero"], ["here"]),
        helper.make_node("Cast", ["here"], ["flat"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["flat", "last"], ["mask"]),
        helper.make_node("Mul", ["vectors", "mask"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "tokens"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["mask", "tokens"], ["count"], keepdims=0),
        helper.make_node("Div", ["sum", "count"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "means",
        [helper.make_tensor_value_info("x", TensorProto.INT64, ["n", "t"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5])],
        [
            numpy_helper.from_array(TABLE, "table"),
            *(numpy_helper.from_array(np.array(value, np.int64), name)
              for name, value in (("zero", [0]), ("last", [2]), ("tokens", [1]))),
        ],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)


def publish_means(store: Store, transform: TextTransform) -> ServedVersion:
    """A package of it and its verdict."""
    spec = PackageSpec(
        target=Target(task="embedding", column="other", width=5),
        forms={"float": RuntimeSpec(file="float.onnx", precision="fp32")},
        default_form="float",
    )

    def package(attempt: Attempt) -> None:
        save_means(attempt.scratch / "float.onnx")
        attempt.add("float.onnx", attempt.scratch / "float.onnx")
        attempt.add_json(PACKAGE_FILE, spec.model_dump(mode="json"))
        attempt.add_json(TRANSFORM_FILE, transform.model_dump(mode="json"))

    rows = transform.tokens(["a fine day", "dull"])
    golden = {"rows": rows.tolist(), "outputs": expected(transform, ["a fine day", "dull"]).tolist(),
              "tolerance": 1e-4, "form": "float"}  # fmt: skip
    catalog = Catalog(store)
    made: ArtifactRef = catalog.produce(
        Work(kind="compressed", config={"means": 1}, inputs={}, code_version="test"), package, Origin()
    ).ref
    verdict = catalog.produce(
        Work(kind="verdict", config={"means": 1}, inputs={"candidate": made}, code_version="test"),
        lambda attempt: attempt.add_json("golden.json", golden),
        Origin(),
    ).ref
    sign_release(store, store._settings, made, verdict)
    return ServedVersion(version="1", artifact=made, form="float", verdict=verdict, weight=100.0)


async def test_the_openai_client_gets_embeddings(settings: Settings, store: Store, tmp_path: Path):
    """A text, several of any length, or tokens; as base64, which the client asks for by itself, and as numbers; with the tokens
    counted. What it cannot have is an error of the client's own kind, and so is a model that makes none."""
    body = (tokenizer_folder(tmp_path / "tiny") / "tokenizer.json").read_bytes()
    tokenizer = plain_tokenizer(body, "here")
    transform = TextTransform(column="text", max_length=24, pad=0, vocabulary=80, tokenizer=tokenizer)
    texts = ["a lovely place", "dull", "the film was very very very very long, and it was quite weird"]
    rows = transform.tokens(texts)
    secret = add_key(tmp_path / "endpoint" / "keys.json", "alice", ["predict"], None)
    version = publish_means(store, transform)
    async with endpoint(settings, store, version, tmp_path, keys="required") as inside, inside.listening() as port:
        client = openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=secret, max_retries=0)
        for given in (texts, [row[row >= 0].tolist() for row in rows]):
            found = await client.embeddings.create(model="digits", input=given)
            vectors = np.array([one.embedding for one in found.data])
            np.testing.assert_allclose(vectors, expected(transform, texts), rtol=1e-5, atol=1e-6)
            assert [one.index for one in found.data] == [0, 1, 2]
            assert found.usage.prompt_tokens == int((rows >= 0).sum())
        plain = await client.embeddings.with_raw_response.create(
            model="digits", input=texts[0], encoding_format="float"
        )
        assert plain.headers["Modelyard-Model-Version"] == "1"
        np.testing.assert_allclose(plain.parse().data[0].embedding, expected(transform, texts[:1])[0], rtol=1e-5)
        await _refused(client)
        await client.close()


async def _refused(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        await client.embeddings.create(model="nobody", input="fine")
    for given, words in [
        ({"input": []}, "'input' must be a text"),
        ({"input": "fine", "dimensions": 3}, "have 5 dimensions"),
        ({"input": ["fine", ""]}, "text 1 of 'input' is empty"),
        ({"input": [[9_999]]}, "a token's number lies outside"),
        ({"input": [[2**63]]}, "a token's number is too large"),
        ({"input": ["fine"] * 2_049}, "at most 2048 are answered at once"),
        ({"input": "fine", "encoding_format": "int8"}, "'encoding_format' is float or base64"),
    ]:
        with pytest.raises(openai.BadRequestError) as refused:
            await client.embeddings.create(model="digits", **given)
        assert words in refused.value.response.text


async def test_a_model_that_makes_no_vectors_says_so(settings: Settings, store: Store, tmp_path: Path):
    """And so does a request that names no model, or is none."""
    async with endpoint(settings, store, publish_version(store, "1"), tmp_path) as inside:
        for body, words in [
            ({"model": "digits", "input": "fine"}, "model 'digits' makes no embeddings"),
            ({"input": "fine"}, "'model' must name one of those that /v1/models lists"),
            ([1], "the body must be a JSON object"),
        ]:
            answer = await inside.client.post("/v1/embeddings", json=body)
            assert (answer.status_code, words in answer.text) == (400, True), answer.text
