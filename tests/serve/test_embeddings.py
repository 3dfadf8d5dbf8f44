"""A network for embedding, taken as it comes: registered, compressed, judged by pairs, asked by OpenAI's client."""

from __future__ import annotations

import base64
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pandas as pd
import pytest

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Catalog, Origin, Product
from modelyard.compress import (
    Budget,
    CompressConfig,
    DropLimit,
    DynamicInt8,
    MeasureConfig,
    PruneHeads,
    SearchConfig,
    compress,
)
from modelyard.datasets import Dataset
from modelyard.errors import ConfigError
from modelyard.evaluate import EvaluateConfig, evaluate, refusal
from modelyard.model_package import ModelPackage
from modelyard.models import HuggingFaceConfig, MlpConfig
from modelyard.preprocess import PreprocessConfig
from modelyard.revisions import ServedVersion
from modelyard.settings import Settings
from modelyard.signing.sign import sign_release
from modelyard.storage import Store
from modelyard.train import OptimizerConfig, StopConfig, TrainConfig, train
from tests.serve.inprocess import Inside, endpoint
from tests.serve.packages import publish_version, roll_out
from tests.textbench import pair_config, pairs, sentence_folder, text_config, text_dataset

pytestmark = pytest.mark.soak  # test_openai.py asks a hand-made model for embeddings


@dataclass(frozen=True, kw_only=True)
class Imported:
    catalog: Catalog
    source: Path
    dataset: ArtifactRef
    model: Product
    package: ArtifactRef
    verdict: ArtifactRef
    folder: Path


def taken(source: Path | str, **changes: object) -> TrainConfig:
    address = source if isinstance(source, str) else f"file://{source}"
    network = HuggingFaceConfig.model_validate({"kind": "huggingface", "source": address, **changes})
    return TrainConfig(model=network, stop=StopConfig(max_steps=0))


@pytest.fixture(scope="module")
def imported(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Imported:
    folder, catalog = tmp_path_factory.mktemp("embedding"), Catalog(store)
    source = sentence_folder(folder / "tiny")
    dataset = text_dataset(catalog, pair_config(f"file://{source}"), pairs())
    model = train(catalog, dataset, taken(source), Origin())
    small = CompressConfig(
        techniques=[DynamicInt8()], default_form="int8-dynamic", measure=MeasureConfig(repeats=2, batches=[1])
    )
    package = compress(catalog, model.ref, dataset, small, Origin()).ref
    bounds = EvaluateConfig(metric="spearman", floor=0.3, allowed_drop_against_float=0.2, resamples=200)
    verdict = evaluate(catalog, package, dataset, None, bounds, Origin()).ref
    catalog.fetch(package, folder / "package")
    return Imported(catalog=catalog, source=source, dataset=dataset, model=model, package=package, verdict=verdict, folder=folder)  # fmt: skip


def test_a_search_finds_the_form_whose_vectors_stay(imported: Imported, tmp_path: Path):
    """Candidates are held to their cosine to the trained network: with a wide limit the int8 form may win, with none at all
    the float one goes on; a metric that vectors do not have is named."""
    catalog, quick = imported.catalog, MeasureConfig(repeats=3, batches=[1])

    def found(**drop: DropLimit) -> tuple[Product, dict[str, Any]]:
        search = SearchConfig(forms=[DynamicInt8()], budget=Budget(max_drop=drop), prefer="size", rounds=3)
        product = compress(
            catalog, imported.model.ref, imported.dataset, CompressConfig(search=search, measure=quick), Origin()
        )
        return product, product.manifest.provenance.measurements["search"]

    product, told = found(cosine=DropLimit(absolute=0.2))
    assert product.manifest.content.facts["default_form"] == "int8-dynamic", told
    (int8,) = (one for one in told["candidates"] if one["name"] == "int8-dynamic")
    cosine = int8["built"]["drops"]["cosine"]
    assert cosine["reference"] == pytest.approx(1)
    catalog.fetch(product.ref, tmp_path)
    frame = pd.concat(Dataset.fetch(catalog, imported.dataset, tmp_path / "rows", ["validation"]).frames("validation"))
    own, exact = (
        np.stack(list(ModelPackage.open(tmp_path, form).predict(frame)["embedding"]))
        for form in ("int8-dynamic", "float")
    )
    assert cosine["value"] == pytest.approx(float((own * exact).sum(axis=1).mean()), abs=1e-4)
    assert cosine["bound"] >= cosine["drop"] > 0
    assert product.manifest.provenance.measurements["parity"]["int8-dynamic"]["mean_cosine"] > 0.8
    product, _ = found(cosine=DropLimit(absolute=0.0))
    assert product.manifest.content.facts["default_form"] == "float"
    _, told = found(accuracy=DropLimit(absolute=0.1))
    assert "accuracy is no metric of this task" in json.dumps(told)


def test_vectors_are_those_of_sentence_transformers(imported: Imported):
    """Pooled and brought to length 1 as the folder says, by the library that wrote it; every form lies near the float
    one, and MLflow's door gives them too."""
    from sentence_transformers import SentenceTransformer

    texts = list(pairs(12)["text"])
    expected = SentenceTransformer(str(imported.source), device="cpu").encode(texts)
    package = ModelPackage.open(imported.folder / "package", "float")
    found = package.predict(pd.DataFrame({"text": texts}))["embedding"]
    np.testing.assert_allclose(np.stack(list(found)), expected, atol=1e-5)
    parity = imported.catalog.manifest(imported.package).provenance.measurements["parity"]
    assert parity["float"]["smallest_cosine"] > 0.99999
    assert 0.95 < parity["int8-dynamic"]["mean_cosine"] <= 1.00001


def test_pairs_judge_it(imported: Imported):
    """A verdict with correlations and their intervals, nearness to the float form, and what typos do."""
    verdict = json.loads(imported.catalog.read(imported.verdict, "verdict.json"))
    metrics = json.loads(imported.catalog.read(imported.verdict, "metrics.json"))["candidate"]
    assert verdict["passed"], verdict["reasons"]
    assert metrics["intervals"]["spearman"]["low"] < metrics["spearman"] < metrics["intervals"]["spearman"]["high"]
    assert metrics["cosine_to_float"] > 0.95
    assert verdict["disturbed"]["typos"]["candidate"] < verdict["disturbed"]["undisturbed"]["candidate"]
    assert "spearman" in imported.catalog.read(imported.verdict, "report.html").decode()


def test_partners_are_found_where_nobody_said_how_alike_they_are(imported: Imported):
    """Recall and NDCG, also by slice, which add up to the whole; a metric that needs similarities is refused, with those there
    are."""
    catalog = imported.catalog
    plain = text_dataset(catalog, pair_config(f"file://{imported.source}", ""), pairs().drop(columns="likeness"))
    column = pairs().columns[0]
    bounds = EvaluateConfig(metric="recall_at_10", floor=0.0, resamples=200, robustness_rows=0, slices=(column,))
    judged = evaluate(catalog, imported.package, plain, imported.package, bounds, Origin())
    facts = judged.manifest.content.facts["metrics"]["candidate"]
    assert 0 < facts["recall_at_1"] < facts["recall_at_10"] <= 1
    slices = json.loads(catalog.read(judged.ref, "verdict.json"))["slices"]
    rows = [one["rows"] for one in slices]
    whole = sum(one["rows"] * one["score"]["value"] for one in slices) / sum(rows)
    assert len(slices) == 20
    assert whole == pytest.approx(facts["recall_at_10"])
    assert all(one["champion"] == one["score"]["value"] for one in slices)
    with pytest.raises(ConfigError, match="embedding has no spearman here; it has recall_at_1"):
        evaluate(catalog, imported.package, plain, None, bounds.model_copy(update={"metric": "spearman"}), Origin())


def test_a_champion_is_compared_pair_by_pair(imported: Imported, tmp_path: Path):
    """Trained on its pairs the network is better than as it came, by a probability; the other way round it is refused. A champion
    for another column, one that is gone and one that was altered are a sentence each in a verdict that refuses."""
    catalog, small = (
        imported.catalog,
        CompressConfig(techniques=[], default_form="float", measure=MeasureConfig(repeats=2, batches=[1])),
    )
    config = pair_config(f"file://{imported.source}")
    split = {"train": 0.5, "validation": 0.1, "test": 0.4}
    dataset = text_dataset(
        catalog, PreprocessConfig.model_validate({**config.model_dump(exclude_unset=True), "split": split}), pairs(600)
    )
    learning = taken(imported.source).model_copy(
        update={"stop": StopConfig(), "max_epochs": 6, "optimizer": OptimizerConfig(learning_rate=0.003)}
    )
    trained = train(catalog, dataset, learning, Origin())
    assert trained.manifest.content.facts["headline"] == "spearman"
    packages = [
        compress(catalog, ref, dataset, small, Origin()).ref
        for ref in (trained.ref, train(catalog, dataset, taken(imported.source), Origin()).ref)
    ]
    bounds = EvaluateConfig(metric="spearman", floor=0.3, probability_better=0.8, resamples=400, robustness_rows=0)
    better = evaluate(catalog, packages[0], dataset, packages[1], bounds, Origin())
    assert refusal(better.manifest) is None, refusal(better.manifest)
    assert json.loads(catalog.read(better.ref, "verdict.json"))["comparison"]["difference"]["value"] > 0
    assert len(refusal(evaluate(catalog, packages[1], dataset, packages[0], bounds, Origin()).manifest).reasons) >= 1
    frame = pairs(600).rename(columns={"other": "answer"})
    named = {**config.model_dump(exclude_unset=True), "target": "answer"}
    other = text_dataset(catalog, PreprocessConfig.model_validate(named), frame)
    champions = {"vectors of texts that belong to 'answer'": compress(
        catalog, train(catalog, other, taken(imported.source), Origin()).ref, other, small, Origin()
    ).ref}  # fmt: skip
    for repeats, body in ((3, None), (4, b"else")):
        copied = small.model_copy(update={"measure": MeasureConfig(repeats=repeats, batches=[1])})
        made = compress(catalog, trained.ref, dataset, copied, Origin())
        uri = made.manifest.file_uri(made.ref.uri, "float.onnx")
        if body:
            catalog.store.put(uri, body)
        else:
            catalog.store.delete([uri])
        champions["float.onnx: sha256 is" if body else "float.onnx: no such object"] = made.ref
    for words, champion in champions.items():
        (reason,) = refusal(evaluate(catalog, packages[0], dataset, champion, bounds, Origin()).manifest).reasons[:1]
        assert words in reason


async def test_the_openai_client_gets_embeddings(imported: Imported, settings: Settings, store: Store, tmp_path: Path):
    """A text, several, or tokens; as base64, which the client asks for by itself, and as numbers: the package's own
    vectors, with the tokens counted. What it cannot have is an error of the client's own kind."""
    sign_release(store, settings, imported.package, imported.verdict)
    version = ServedVersion(
        version="1", artifact=imported.package, form="int8-dynamic", verdict=imported.verdict, weight=100.0
    )
    async with endpoint(settings, store, version, tmp_path) as inside, inside.listening() as port:
        async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as client:
            await _asked(imported, client)
            await _refused(client)
        roll_out(store, inside.settings.endpoint_name, publish_version(store, "5"), model="digits")
        await _asked_of_another(inside)


async def _asked(imported: Imported, client: openai.AsyncOpenAI) -> None:
    texts = list(pairs(4)["text"])
    package = ModelPackage.open(imported.folder / "package")
    rows = package.transform.rows({"text": texts})
    expected = np.concatenate([package.outputs(rows[at : at + 1]) for at in range(len(rows))])
    as_tokens = [[int(token) for token in row if token >= 0] for row in rows]
    for given in (texts, as_tokens):
        for encoding in ("base64", "float"):
            found = await client.embeddings.create(model="digits", input=given, encoding_format=encoding)
            vectors = [
                np.frombuffer(base64.b64decode(str(one.embedding)), "<f4") if encoding == "base64" else one.embedding
                for one in found.data
            ]
            np.testing.assert_allclose(np.array(vectors), expected, atol=0.05)
            assert found.usage.prompt_tokens == int((rows >= 0).sum())
    alone = await client.embeddings.create(model="digits", input=texts[0])
    np.testing.assert_allclose(alone.data[0].embedding, expected[0], atol=0.05)
    assert np.linalg.norm(alone.data[0].embedding) == pytest.approx(1, abs=1e-3)


async def _refused(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        await client.embeddings.create(model="nobody", input="fine")
    for given, words in [
        ({"input": []}, "'input' must be a text"),
        ({"input": "fine", "dimensions": 3}, "have 16 dimensions"),
        ({"input": ["fine", ""]}, "text 1 of 'input' is empty"),
        ({"input": [[9_999]]}, "a token's number lies outside"),
        ({"input": [[2**63]]}, "a token's number is too large"),
        ({"input": "fine", "encoding_format": "int8"}, "'encoding_format' is float or base64"),
    ]:
        with pytest.raises(openai.BadRequestError) as refused:
            await client.embeddings.create(model="digits", **given)
        assert words in refused.value.response.text


async def _asked_of_another(inside: Inside) -> None:
    answer = await inside.client.post("/v1/embeddings", json={"input": "fine"})
    assert (answer.status_code, "'model' must name one" in answer.text) == (400, True)


# -- what is refused ----------------------------------------------------------------------------------


def test_what_cannot_be_taken_as_it_comes_is_refused(imported: Imported, tmp_path: Path):
    """A network without weights of its own, a head that would be random, parts nobody knows, a way of pooling that nobody
    says."""
    catalog, dataset = imported.catalog, imported.dataset
    with pytest.raises(ConfigError, match=r"train\.stop\.max_steps: 0 steps publish a network as it comes"):
        train(catalog, dataset, TrainConfig(model=MlpConfig(), stop=StopConfig(max_steps=0)), Origin())
    moods = text_dataset(catalog, text_config(f"file://{imported.source}"))
    _with_labels(tmp_path / "labels", imported.source)
    with pytest.raises(ConfigError, match="the network's classes are LABEL_0, LABEL_1, the data set's bad, good, odd"):
        train(catalog, moods, taken(tmp_path / "labels"), Origin())
    bare = tmp_path / "bare"
    shutil.copytree(imported.source, bare)
    (bare / "modules.json").write_text(json.dumps([{"type": "sentence_transformers.models.Dense"}]))
    with pytest.raises(ConfigError, match="has a part that Modelyard does not know: Dense"):
        train(catalog, dataset, taken(bare), Origin())
    (bare / "modules.json").unlink()
    shutil.rmtree(bare / "1_Pooling")
    with pytest.raises(ConfigError, match=r"train\.model\.pooling: how do tokens become a text's vector\?"):
        train(catalog, dataset, taken(bare), Origin())
    assert train(catalog, dataset, taken(bare, pooling="cls"), Origin()).ref != imported.model.ref
    smaller = SearchConfig(networks=[PruneHeads(fraction=0.5)])
    with pytest.raises(ConfigError, match=r"compress\.search\.networks: networks for vectors are given other forms"):
        compress(catalog, imported.model.ref, dataset, CompressConfig(search=smaller), Origin())


def _with_labels(folder: Path, source: Path) -> None:
    shutil.copytree(source, folder)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}))


def test_pairs_need_a_text_on_either_side(imported: Imported):
    """Said when the preset is read; a similarity that is no number is a refused row."""
    config = pair_config(f"file://{imported.source}")
    with pytest.raises(ValueError, match="embedding reads a column of type text"):
        PreprocessConfig.model_validate(config.model_dump() | {"columns": {}, "transform": {}})
    frame = pairs(100).astype({"likeness": object})
    frame.loc[3, "likeness"] = "much"
    ref = text_dataset(imported.catalog, config, frame.astype(str))
    assert imported.catalog.manifest(ref).content.facts["rejected"] == 1
