"""Models for retrieval under judgement, by vectors that are known."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import top_k_accuracy_score

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Catalog
from modelyard.datasets import SPLITS, Dataset
from modelyard.errors import ConfigError, DataError
from modelyard.evaluate import EvaluateConfig
from modelyard.evaluate.checks import judge
from modelyard.evaluate.judge_items import JudgedItems, gather_items
from modelyard.model_package import ModelPackage, PackageSpec
from modelyard.retrieval import Items
from modelyard.runtime import RuntimeSpec
from modelyard.settings import Settings
from modelyard.storage import Store
from tests.clickbench import click_dataset
from tests.workbench import own_catalog

WIDTH = 6
BOUNDS = EvaluateConfig(metric="recall_at_10", floor=0.2, resamples=200, probability_better=0.9, slices=("genre",))


class Tables:
    """A runtime whose vectors are rows of a table, by the first input."""

    def __init__(self, table: np.ndarray) -> None:
        self._table = table

    def run(self, inputs: np.ndarray) -> np.ndarray:
        return self._table[inputs[:, 0].astype(np.int64)]


@pytest.fixture(scope="module")
def clicked(
    store: Store, settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Catalog, ArtifactRef, Dataset]:
    catalog = own_catalog(settings)
    ref = click_dataset(catalog)
    return catalog, ref, Dataset.fetch(catalog, ref, tmp_path_factory.mktemp("clicks"), list(SPLITS))


def package(dataset: Dataset, noise: float, width: int = WIDTH, **spec: Any) -> ModelPackage:
    """Users and items placed by the clicks of all splits, more or less exactly."""
    rng, target = np.random.default_rng(0), dataset.target
    users, items = dataset.transform.tables[0], target.items.tables[0]
    counts = np.zeros((users, items))
    for split in SPLITS:
        for frame in dataset.frames(split):
            rows, others = dataset.transform.apply_frame(frame)[:, 0], target.items.apply_frame(frame)[:, 0]
            np.add.at(counts, (rows.astype(int), others.astype(int)), 1.0)
    left, size, right = np.linalg.svd(counts, full_matrices=False)
    vectors = [left[:, :width] * size[:width], right[:width].T]
    vectors = [one + noise * one.std() * rng.normal(size=one.shape) for one in vectors]
    forms = {"float": RuntimeSpec(file="float.onnx", precision="fp32")}
    told = {"target": target.model_copy(update={"width": width}), "forms": forms, "default_form": "float"}
    whole = PackageSpec.model_validate(told | {"items": RuntimeSpec(file="items.onnx", precision="fp32")} | spec)
    runtimes: list[Any] = [Tables(one.astype(np.float32)) for one in vectors]
    return ModelPackage(whole, dataset.transform, runtimes[0], "float", runtimes[1])


def judged(dataset: Dataset, **noise: Any) -> dict[str, JudgedItems]:
    return {role: JudgedItems(role, package(dataset, **options)) for role, options in noise.items()}


def test_every_test_row_is_ranked_against_the_whole_catalogue(clicked: tuple[Catalog, ArtifactRef, Dataset]):
    """Recall as scikit-learn counts it over a whole matrix of scores; intervals, slices that add up to the split, and a
    champion that is beaten by a probability; no bound on what could not be had passes."""
    catalog, ref, dataset = clicked
    roles = judged(dataset, candidate={"noise": 0.0}, float={"noise": 0.01}, champion={"noise": 4.0})
    for one in roles.values():
        one.check_fits(dataset.target, dataset.transform.columns)
    evidence = gather_items(catalog, ref, dataset, roles, BOUNDS)
    candidate, items = roles["candidate"], Items.collect(
        (frame for split in SPLITS for frame in dataset.frames(split)), "item", dataset.target.items.columns
    )  # fmt: skip
    (frame,) = dataset.frames("test")
    scores = candidate.package.predict(frame)["embedding"].tolist() @ candidate.package.item_vectors(items.frame).T
    truth, labels = items.numbers(frame["item"]), np.arange(len(items))
    found = evidence.scores["candidate"]
    assert found.value == pytest.approx(top_k_accuracy_score(truth, scores, k=10, labels=labels))
    assert found.low < found.value <= found.high
    assert sum(one.rows for one in evidence.slices) == len(frame)
    weighted = sum(one.rows * one.score.value for one in evidence.slices) / len(frame)
    assert weighted == pytest.approx(found.value)
    comparison = evidence.comparison
    assert comparison.difference.value == pytest.approx(found.value - evidence.scores["champion"].value)
    assert comparison.probability_better > 0.99
    assert comparison.only_candidate_right > comparison.only_champion_right
    assert candidate.headline()["cosine_to_float"] > 0.99
    assert len(evidence.golden) == BOUNDS.golden_rows
    assert judge("it", evidence, BOUNDS).passed
    refused = judge("it", evidence, BOUNDS.model_copy(update={"allowed_drop_when_disturbed": 0.1}))
    assert [reason for reason in refused.reasons if "nothing was tried" in reason]


def test_a_champion_that_is_better_refuses(clicked: tuple[Catalog, ArtifactRef, Dataset]):
    """By the allowed drop and by the probability; vectors of another width are told of."""
    catalog, ref, dataset = clicked
    champion = {"noise": 0.0, "width": 5}
    roles = judged(dataset, candidate={"noise": 4.0}, float={"noise": 4.0}, champion=champion)
    evidence = gather_items(catalog, ref, dataset, roles, BOUNDS.model_copy(update={"floor": 0.0}))
    reasons = judge("it", evidence, BOUNDS.model_copy(update={"floor": 0.0})).reasons
    assert len(reasons) == 2
    assert evidence.comparison.probability_better < 0.01
    assert any("has 6 numbers, the champion's 5" in note for note in evidence.notes)


def test_what_cannot_be_judged_is_said(clicked: tuple[Catalog, ArtifactRef, Dataset], tmp_path: Path):
    """A metric of another task, a package without the half that reads items, columns that the data set lacks; a champion
    that could not be opened is a check that fails, whatever else is there."""
    catalog, ref, dataset = clicked
    roles = judged(dataset, candidate={"noise": 0.0}, float={"noise": 0.0})
    with pytest.raises(ConfigError, match="retrieval has no accuracy; it has recall_at_1"):
        gather_items(catalog, ref, dataset, roles, EvaluateConfig())
    half = JudgedItems("champion", package(dataset, 0.0, items=None))
    with pytest.raises(DataError, match="the champion cannot be judged: its package has nothing that reads items"):
        half.check_fits(dataset.target, dataset.transform.columns)
    fewer = dataset.target.items.model_copy(update={"features": dataset.target.items.features[:1]})
    with pytest.raises(DataError, match="takes columns of items that the set lacks: genre, price"):
        roles["candidate"].check_fits(dataset.target.model_copy(update={"items": fewer}), dataset.transform.columns)
    evidence = gather_items(catalog, ref, dataset, roles, BOUNDS)
    evidence.champion_problem = "s3://there: nothing there"
    (reason,) = [one for one in judge("it", evidence, BOUNDS).reasons if "champion" in one]
    assert "s3://there: nothing there" in reason
    assert not math.isnan(evidence.scores["candidate"].value)
