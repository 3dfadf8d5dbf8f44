"""A whole search over real candidates, without flows: processes, files and a store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from modelyard.catalog import Attempt, Catalog, Product, Work
from modelyard.compress import (
    Budget,
    CompressConfig,
    Distil,
    DropLimit,
    Float32,
    HalfWeights,
    LowRank,
    MeasureConfig,
    PruneUnits,
    Recovery,
    SearchConfig,
    StaticInt8,
    compress,
)
from modelyard.compress.candidates import FORM_FILE, Bench, build, measure
from modelyard.compress.front import front_png, table
from modelyard.compress.outcomes import Decision, Fell, Measured, Recipe, Standing
from modelyard.compress.workshop import shared_workshop
from modelyard.datasets import Dataset
from modelyard.model_package import FLOAT_FORM, PLAIN_SUFFIXES, ModelPackage, refuse_foreign_files
from modelyard.runtime import RuntimeSpec
from modelyard.settings import Settings
from modelyard.storage import Store
from tests.workbench import ORIGIN, digits_dataset, own_catalog, quick_model

SEARCH = SearchConfig(
    budget=Budget(max_drop={"accuracy": DropLimit(absolute=0.06)}),
    prefer="size",
    networks=[LowRank(energy=0.9), PruneUnits(recovery=Recovery()), Distil()],
    forms=[StaticInt8(), Float32(form="torch", engine="torch")],
    rounds=3,
)
CONFIG = CompressConfig(search=SEARCH, measure=MeasureConfig(repeats=3))


class Searched:
    """A search on the digits, with its evidence and its package in a local folder."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.catalog: Catalog = own_catalog(settings)
        self.dataset = digits_dataset(self.catalog)
        self.model = quick_model(self.catalog, self.dataset, epochs=30, max_shard_bytes=10_000)  # three files
        self.product: Product = compress(self.catalog, self.model, self.dataset, CONFIG, ORIGIN)
        self.evidence = self.product.manifest.provenance.measurements["search"]
        self.candidates = {one["name"]: Standing.model_validate(one) for one in self.evidence["candidates"]}
        self.folder = folder / "package"
        self.catalog.fetch(self.product.ref, self.folder)


@pytest.fixture(scope="module")
def searched(store: Store, settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Searched:
    del store  # it runs
    return Searched(settings, tmp_path_factory.mktemp("search"))


def test_every_engine_and_technique_takes_part(searched: Searched):
    """Each candidate is built, judged and measured, or says why not; the room cannot train, so that is a reason."""
    assert set(searched.candidates) > {"float", "int8", "torch", "low-rank-e0.9", "low-rank-e0.9-int8"}
    for name in ("float", "int8", "torch", "low-rank-e0.9-torch"):
        one = searched.candidates[name]
        assert one.built, one
        assert one.measured, one
        assert one.measured.latency[1].p50_ms > 0
    for name in ("units-0.5", "distil-0.25"):
        assert searched.candidates[name].outcome == "fell"
        assert "needs the train stage" in searched.candidates[name].reason
    assert searched.candidates["distil-0.25-int8"].outcome == "dropped"


def test_the_winner_is_packaged_with_its_evidence(searched: Searched):
    """Budget, every candidate, machine, threads and versions are in the manifest, and nothing of it in the digest."""
    evidence, content = searched.evidence, searched.product.manifest.content
    winner = searched.candidates[evidence["winner"]]
    inside = [one for one in searched.candidates.values() if one.outcome in {"winner", "loser"}]
    assert winner.outcome == "winner"
    assert winner.gain == "compressed"
    assert winner.built.size_bytes == min(one.built.size_bytes for one in inside)
    assert evidence["budget"]["max_drop"] == {"accuracy": {"absolute": 0.06, "relative": None}}
    assert evidence["host"]["cores"] >= 1
    assert evidence["measure"]["threads"] == 1
    assert {"onnxruntime", "torch"} < set(evidence["versions"])
    assert content.facts["size_bytes"][winner.name] == winner.built.size_bytes
    assert not {"latency_ms", "search"} & set(content.facts)
    refuse_foreign_files(content.files)
    assert {Path(name).suffix for name in content.files} - {""} <= PLAIN_SUFFIXES


def test_the_package_answers_with_the_winner(searched: Searched, tmp_path: Path):
    """Its default form is the winner; on the test split it is right about as often as the float form beside it."""
    dataset = Dataset.fetch(searched.catalog, searched.dataset, tmp_path, ["test"])
    frame = pd.concat(dataset.frames("test"))
    package = ModelPackage.open(searched.folder)
    assert package.form == searched.evidence["winner"]
    right = [
        (ModelPackage.open(searched.folder, form).predict(frame)["label"] == frame["label"]).mean()
        for form in (package.form, FLOAT_FORM)
    ]
    assert right[0] >= right[1] - 0.06


def test_a_second_search_finds_its_candidates(searched: Searched):
    """Another wish judges the same candidates: none is built again. The same wish finds the package."""
    assert compress(searched.catalog, searched.model, searched.dataset, CONFIG, ORIGIN).reused
    count = len(_candidates(searched.catalog))
    wish = SEARCH.model_copy(update={"prefer": "speed", "forms": SEARCH.forms[:1], "networks": []})
    again = compress(
        searched.catalog, searched.model, searched.dataset, CONFIG.model_copy(update={"search": wish}), ORIGIN
    )
    assert not again.reused
    assert len(_candidates(searched.catalog)) == count


def test_the_package_can_be_compressed_no_further_than_it_says(searched: Searched):
    """A budget that nobody meets: the float model goes on, and that is said."""
    wish = SEARCH.model_copy(update={"budget": Budget(max_size_bytes=10), "forms": [HalfWeights()], "networks": []})
    product = compress(
        searched.catalog, searched.model, searched.dataset, CONFIG.model_copy(update={"search": wish}), ORIGIN
    )
    evidence = product.manifest.provenance.measurements["search"]
    assert evidence["winner"] == product.manifest.content.facts["default_form"] == FLOAT_FORM
    assert evidence["why"] == "no candidate is inside the budget: the float model goes on as it is"
    assert list(product.manifest.content.facts["size_bytes"]) == [FLOAT_FORM]


def test_a_form_that_ends_the_measuring_falls_alone(searched: Searched):
    """Each is measured again with the float form beside it: the others have their figures."""

    def broken(attempt: Attempt) -> None:
        attempt.add_bytes("broken.onnx", b"not a model")
        attempt.add_json(FORM_FILE, RuntimeSpec(file="broken.onnx", precision="fp32").model_dump(mode="json"))

    work = Work(kind="candidate", config={"name": "broken"}, inputs={"model": searched.model}, code_version="test")
    made = {"broken": searched.catalog.produce(work, broken, ORIGIN).ref}
    bench = Bench(
        catalog=searched.catalog,
        workshop=shared_workshop(),
        model=searched.model,
        dataset=searched.dataset,
        config=CONFIG,
    )
    made |= {FLOAT_FORM: build(bench, Recipe(), searched.model, None, ORIGIN).ref}
    found = measure(bench, made, FLOAT_FORM)
    assert isinstance(found[FLOAT_FORM], Measured)
    assert isinstance(found["broken"], Fell)
    assert found["broken"].reason.startswith("when it was measured: broken.onnx: onnxruntime cannot load it")


def test_a_search_can_be_looked_at(searched: Searched):
    """A row for each candidate, with its reason, and a picture."""
    decision = Decision(
        winner=searched.evidence["winner"], why=searched.evidence["why"], standings=list(searched.candidates.values())
    )
    rows = {row["candidate"]: row for row in table(decision)}
    assert set(rows) == set(searched.candidates)
    assert all(row["why"] for row in rows.values() if row["outcome"] != "winner")
    assert rows[decision.winner]["front"] == "yes"
    assert front_png(decision).startswith(b"\x89PNG")


def _candidates(catalog: Catalog) -> set[str]:
    found = {info.uri for info in catalog.store.list(f"{catalog.store.root}/artifacts/candidate")}
    return {uri for uri in found if uri.endswith("manifest.json")}


def test_rows_are_answered_alike_alone_and_together(searched: Searched):
    """By every engine that the search tried: what the endpoint batches together does not matter."""
    rows = np.random.default_rng(0).uniform(0, 16, (9, 64))
    package = ModelPackage.open(searched.folder)
    together = package.outputs(rows)
    np.testing.assert_allclose(np.concatenate([package.outputs(row[None]) for row in rows]), together, atol=1e-5)
