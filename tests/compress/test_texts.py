"""A search over the forms of a network that reads texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from modelyard.catalog import Origin
from modelyard.compress import (
    AcceleratorOnly,
    Budget,
    CompressConfig,
    DropLimit,
    DynamicInt8,
    Float32,
    HalfWeights,
    Int4Weights,
    Int8Weights,
    LowRank,
    MeasureConfig,
    NncfInt8,
    PruneHeads,
    SearchConfig,
    StaticInt8,
    compress,
)
from modelyard.model_package import ModelPackage
from modelyard.settings import Settings
from modelyard.storage import Store
from tests.textbench import network_folder, quick_text_model, text_config, text_dataset
from tests.workbench import own_catalog


@pytest.mark.soak
def test_every_form_is_tried(store: Store, settings: Settings, tmp_path: Path):
    """onnxruntime's, OpenVINO's and torch's, layers of low rank and with fewer heads: each reads texts of any length, and the
    package of the winner answers as its measurements say. What needs a GPU falls alone."""
    del store
    catalog = own_catalog(settings)
    source = network_folder(tmp_path / "tiny")
    dataset = text_dataset(catalog, text_config(f"file://{source}"))
    model = quick_text_model(catalog, dataset, source)
    forms = [
        StaticInt8(), DynamicInt8(), HalfWeights(), Float32(), Float32(engine="torch", form="torch"),
        NncfInt8(transformer=True), Int4Weights(block_size=16), Int8Weights(block_size=16),
    ]  # fmt: skip
    elsewhere = AcceleratorOnly(technique="torchao_int4")
    search = SearchConfig(
        forms=[*forms, elsewhere],
        networks=[LowRank(parameter_fraction=0.6), PruneHeads(fraction=0.5)],
        budget=Budget(max_drop={"accuracy": DropLimit(absolute=0.5)}, confidence=0.6),
        prefer="size",
        rounds=3,
    )
    config = CompressConfig(search=search, measure=MeasureConfig(repeats=3, batches=[1, 4]))
    product = compress(catalog, model, dataset, config, Origin())
    found = product.manifest.provenance.measurements["search"]
    lost = {one["name"]: one["reason"] for one in found["candidates"] if one["name"] != found["winner"]}
    assert all("this machine has none" in lost.pop(name) for name in list(lost) if name.endswith(elsewhere.form))
    assert len(lost) == 3 * (1 + len(forms)) - 1
    assert all(reason.startswith("larger than") for reason in lost.values()), lost
    catalog.fetch(product.ref, tmp_path / "package")
    package = ModelPackage.open(tmp_path / "package")
    rows = package.transform.rows({"text": ["a lovely place", "dull " * 20]})
    assert np.isfinite(package.outputs(rows)).all()
