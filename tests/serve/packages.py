"""Real artifacts for the endpoint's tests: a linear model 4 -> 3 as a package, and its verdict, published for real."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Attempt, Catalog, Origin, Work
from modelyard.model_package import PACKAGE_FILE, TRANSFORM_FILE, PackageSpec
from modelyard.revisions import ModelState, Revision, ServedVersion, propose_revision
from modelyard.runtime import RuntimeSpec
from modelyard.signing.sign import sign_release
from modelyard.storage import Store
from modelyard.task_kinds import Target
from modelyard.transform import Category, FeatureScale, FittedTransform

WIDTH, NUM_CLASSES = 4, 3
COLUMNS = [f"feature_{number}" for number in range(WIDTH)]
TRANSFORM = FittedTransform(features=[FeatureScale(name=name, offset=1.0, scale=2.0) for name in COLUMNS])
# Texts and gaps besides numbers: four inputs from three columns.
MIXED = FittedTransform(
    features=[
        Category(kind="one_hot", name="colour", values=["blue", "red"]),
        FeatureScale(name="size", offset=1.0, scale=2.0, fill=5.0),
        FeatureScale(name="weight", offset=0.0, scale=10.0),
    ]
)
# The same columns; what is 0 there is 1 here.
TURNED = FittedTransform(
    features=[Category(kind="one_hot", name="colour", values=["red", "blue"]), *MIXED.features[1:]]
)
MIXED_ROWS = {"colour": ["red", "blue", "green"], "size": [1.0, 2.0, None], "weight": [3.0, 4.0, 5.0]}
ROWS = np.random.default_rng(0).normal(size=(8, WIDTH)).round(3)


class LinearModel:
    """What a version computes, so that a test can tell which one answered."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.weight = rng.normal(size=(WIDTH, NUM_CLASSES)).astype(np.float32)
        self.bias = rng.normal(size=NUM_CLASSES).astype(np.float32)

    def outputs(self, rows: np.ndarray, transform: FittedTransform = TRANSFORM) -> np.ndarray:
        return transform.apply(rows) @ self.weight + self.bias

    def save(self, path: Path) -> None:
        graph = helper.make_graph(
            [helper.make_node("Gemm", ["x", "w", "b"], ["y"])],
            "linear",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", WIDTH])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", NUM_CLASSES])],
            [numpy_helper.from_array(self.weight, "w"), numpy_helper.from_array(self.bias, "b")],
        )
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)


def publish_version(
    store: Store,
    version: str,
    *,
    weight: float = 100.0,
    golden_shift: float = 0.0,
    classes: tuple[str | int, ...] = ("ant", "bee", "cat"),
    transform: FittedTransform = TRANSFORM,
    is_signed: bool = True,
    kind: type[LinearModel] = LinearModel,
    measured_ms: float | None = None,
) -> ServedVersion:
    """A version whose model is seeded by its number, signed as a rollout does; a golden shift makes the verdict expect
    something else."""
    model = kind(int(version))
    artifact = _publish_package(store, model, list(classes), transform, measured_ms)
    rows = ROWS if transform is TRANSFORM else np.ones((2, len(transform.columns)))
    verdict = _publish_verdict(store, artifact, rows, model.outputs(rows, transform) + golden_shift)
    if is_signed:
        sign_release(store, store._settings, artifact, verdict)
    return ServedVersion(version=version, artifact=artifact, form="int8", verdict=verdict, weight=weight)


def roll_out(
    store: Store, endpoint: str, *versions: ServedVersion, previous: ServedVersion | None = None, model: str = "digits"
) -> Revision:
    state = ModelState(versions=list(versions), previous=previous)
    return propose_revision(
        store, endpoint, lambda revision: dict(revision.models) | {model: state}, reason="a test", author="pytest"
    )


def _publish_package(
    store: Store,
    model: LinearModel,
    classes: list[str | int],
    transform: FittedTransform,
    measured_ms: float | None = None,
) -> ArtifactRef:
    spec = PackageSpec(
        target=Target(column="label", classes=classes),
        forms={"int8": RuntimeSpec(file="model.onnx", precision="int8")},
        default_form="int8",
    )

    def build(attempt: Attempt) -> None:
        model.save(attempt.scratch / "model.onnx")
        attempt.add("model.onnx", attempt.scratch / "model.onnx")
        attempt.add_json(PACKAGE_FILE, spec.model_dump(mode="json"))
        attempt.add_json(TRANSFORM_FILE, transform.model_dump(mode="json"))
        if measured_ms is not None:
            attempt.measurements["latency_ms"] = {"int8": {"1": measured_ms}}

    # A nonce in the config: a test that damages its artifact must not damage its neighbours'.
    work = Work(kind="compressed", config={"nonce": uuid4().hex}, inputs={}, code_version="test")
    return Catalog(store).produce(work, build, Origin()).ref


def _publish_verdict(store: Store, artifact: ArtifactRef, rows: np.ndarray, expected: np.ndarray) -> ArtifactRef:
    golden = {"rows": rows.tolist(), "outputs": expected.tolist(), "tolerance": 0.001, "form": "int8"}
    work = Work(kind="verdict", config={"nonce": uuid4().hex}, inputs={"candidate": artifact}, code_version="test")

    def build(attempt: Attempt) -> None:
        attempt.add_json("golden.json", golden)
        attempt.facts.update(passed=True, reasons=[])

    return Catalog(store).produce(work, build, Origin()).ref
