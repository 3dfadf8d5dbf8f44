"""Explanations of models whose reasons are known."""

from __future__ import annotations

import base64
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import save
from torch import nn

from modelyard.evaluate import EvaluateConfig
from modelyard.evaluate.ablation import ablated_tokens
from modelyard.evaluate.explain import _attributions, _grid, explain
from modelyard.evaluate.explain_figure import explanation_figure, explanation_png
from modelyard.evaluate.explain_texts import _told_first
from modelyard.evaluate.judge import Judged
from modelyard.evaluate.parents import Parent
from modelyard.model_package import ModelPackage, PackageSpec
from modelyard.runtime import RuntimeSpec, open_runtime
from modelyard.task_kinds import Target
from modelyard.transform import FeatureScale, FittedTransform
from modelyard.transform.features import Category
from tests.test_model_package import save_linear

# Inputs: a, b, and three of colour; what speaks for `ant` is a, for `bee` blue; b plays no part.
WEIGHT = np.array([[2.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
TRANSFORM = FittedTransform(
    features=[
        FeatureScale(name="a", offset=0, scale=1),
        FeatureScale(name="b", offset=0, scale=1),
        Category(kind="one_hot", name="colour", values=["red", "blue", "green"]),
    ]
)
CONFIG = EvaluateConfig(explained_rows=200)


def frame(num_rows: int = 300) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({
        "a": rng.normal(size=num_rows),
        "b": rng.normal(size=num_rows),
        "colour": rng.choice(["red", "blue", "green"], num_rows),
    })  # fmt: skip
    scores = TRANSFORM.apply_frame(rows) @ WEIGHT
    return rows.assign(kind=np.where(scores[:, 0] >= scores[:, 1], "ant", "bee"))


def network(weight: np.ndarray) -> nn.Module:
    layer = nn.Linear(*weight.shape, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight.T.astype(np.float32)))
    return layer


@pytest.fixture
def judged(tmp_path: Path) -> Judged:
    save_linear(tmp_path / "float.onnx", WEIGHT)
    form = RuntimeSpec(file="float.onnx", precision="fp32")
    spec = PackageSpec(
        target=Target(column="kind", classes=["ant", "bee"]), forms={"float": form}, default_form="float"
    )
    return Judged("candidate", ModelPackage(spec, TRANSFORM, open_runtime(form, tmp_path), "float"))


def test_columns_count_by_what_they_do(judged: Judged):
    """A column without a part loses nothing and gets nothing; a category's inputs are one column again; on a linear
    network attributions are exactly weight times distance from the mean row."""
    rows = frame()
    found = explain(judged, Parent(network(WEIGHT)), rows.iloc[:200], CONFIG)
    assert found is not None
    assert found["rows"] == 200
    losses = dict(zip(found["columns"], found["importance"], strict=True))
    assert losses["b"] == 0.0
    assert losses["a"] > losses["colour"] > 0.02
    by_class = found["attribution"]["by_class"]
    assert by_class["ant"][0] > 0.5
    assert by_class["bee"][2] > 0.02
    assert by_class["ant"][1] == by_class["bee"][1] == 0.0
    head = rows.iloc[:200]
    answered = head["kind"] == "ant"
    expected = 2 * (head["a"][answered].mean() - head["a"].mean())
    assert by_class["ant"][0] == pytest.approx(expected, rel=1e-3)
    assert found["attribution"]["completeness"]["largest"] < 1e-4


def test_attributions_pass_through_a_projection():
    """A network behind a principal component is explained in raw columns, and nothing is lost on the way."""
    mean, components = np.array([1.0, 2.0]), np.array([[0.6, 0.8]])
    transform = FittedTransform(
        features=[FeatureScale(name=name, offset=0, scale=1) for name in ("a", "b")],
        projection=base64.b64encode(save({"mean": mean, "components": components})).decode(),
    )
    codes = np.random.default_rng(0).normal(size=(50, 2))
    found, completeness = _attributions(network(np.array([[3.0]])), transform, codes, np.zeros(50, np.int64))
    expected = (codes - codes.mean(axis=0)) * components * 3.0
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert completeness["largest"] < 1e-4


def test_without_a_trained_network_columns_are_taken_away(judged: Judged):
    """Attributions are what the served form's answer loses: of a linear network again exactly weight times distance from the
    mean, by class and behind the worst errors; a category gives way to the most frequent one; a picture comes out."""
    rows = frame().assign(kind=lambda all_rows: all_rows["kind"].mask(all_rows.index == 7, "bee"))
    found = explain(judged, Parent(reason="gone"), rows.iloc[:200], CONFIG)
    assert found is not None
    assert (found["attribution"]["method"], found["attribution"]["completeness"]) == ("ablation", None)
    head = rows.iloc[:200].assign(kind=frame()["kind"])
    ant, bee = (found["attribution"]["by_class"][kind] for kind in ("ant", "bee"))
    assert ant[0] == pytest.approx(2 * (head["a"][head["kind"] == "ant"].mean() - head["a"].mean()), rel=1e-3)
    assert ant[1:] == [0.0, 0.0]
    usual = head["colour"].mode()[0] == "blue"
    assert bee == pytest.approx([0.0, 0.0, (head["colour"][head["kind"] == "bee"] == "blue").mean() - usual], abs=1e-6)
    assert found["importance"][0] > 0
    assert [(one["truth"], one["answer"]) for one in found["worst"]] == [("bee", "ant")]
    assert explanation_png(found).startswith(b"\x89PNG")


def test_errors_made_with_most_confidence_come_first(judged: Judged):
    """Six of them at most, each with its values and what spoke for the answer."""
    rows = frame()
    rows.loc[:30, "kind"] = np.where(rows.loc[:30, "kind"] == "ant", "bee", "ant")
    found = explain(judged, Parent(network(WEIGHT)), rows.iloc[:200], CONFIG)
    assert found is not None
    confidences = [one["confidence"] for one in found["worst"]]
    assert len(confidences) == 6
    assert confidences == sorted(confidences, reverse=True)
    assert all(len(one["values"]) == len(one["attribution"]) == 3 for one in found["worst"])


def test_tokens_are_taken_away():
    """Of a network that adds up what tokens say, each weighs what it says beyond padding; what lies behind a text has none."""
    says = np.array([[0.5, 0.0], [3.0, 1.0], [-2.0, 4.0]], dtype=np.float32)  # by token, for each answer; 0: padding
    package = cast("ModelPackage", SimpleNamespace(run=lambda tokens: says[tokens].sum(axis=1)))
    found = ablated_tokens(package, np.array([[1, 2, 2], [2, 1, -1]]), np.array([0, 1]), pad=0)
    np.testing.assert_allclose(found, [[2.5, -2.5, -2.5], [4.0, 1.0, 0.0]], atol=1e-6)


def test_texts_are_told_of_every_class():
    """Errors come first, then of each class in turn what the model was surest of."""
    classifier = cast("Judged", SimpleNamespace(is_classifier=True))
    outputs = np.array([[5.0, 0.0], [9.0, 0.0], [7.0, 0.0], [0.0, 2.0], [0.0, 1.0], [3.0, 0.0]])
    told = _told_first(classifier, outputs, np.array([0, 0, 0, 1, 1, 1]))
    assert told.tolist() == [5, 1, 3, 2, 4, 0]


def test_nothing_asked_nothing_said(judged: Judged):
    """With no rows to look at there is no explanation, and no error."""
    assert explain(judged, Parent(network(WEIGHT)), frame().iloc[:0], CONFIG) is None


def test_an_image_is_drawn_as_one(judged: Judged):
    """Numbered columns that make a square become maps: importance, each class, each of the worst errors."""
    del judged
    pixels = np.linspace(-1, 1, 16).tolist()
    worst: dict[str, Any] = {"truth": 1, "answer": 7, "confidence": 0.9, "values": pixels, "attribution": pixels}
    found = {
        "columns": [f"pixel_{row}_{column}" for row in range(4) for column in range(4)],
        "grid": [4, 4], "rows": 10, "importance": pixels, "worst": [worst, worst],
        "attribution": {"global": pixels, "by_class": {"1": pixels, "7": pixels}, "completeness": {}},
    }  # fmt: skip
    figure = explanation_figure(found)
    maps = [axes for part in figure.subfigs for axes in part.axes if axes.images]
    assert len(maps) == 2 + 2 + 2
    assert explanation_png(found) == explanation_png(found)


def test_numbered_columns_of_a_square_are_an_image():
    """Of one name only; numbers of different things stay bars."""

    def columns(names: list[str]) -> Any:
        features = [FeatureScale(name=name, offset=0, scale=1) for name in names]
        return SimpleNamespace(columns=names, features=features)

    assert _grid(columns([f"pixel_{row}_{column}" for row in range(8) for column in range(8)])) == [8, 8]
    assert _grid(columns([f"p{number}" for number in range(16)])) == [4, 4]
    assert _grid(columns([f"p{number}" for number in range(15)])) is None
    assert _grid(columns([f"{name}{number}" for name in "ab" for number in range(8)])) is None
