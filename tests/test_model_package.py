"""A package folder, opened as evaluation, endpoint and MLflow open it."""

from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pytest
from onnx import TensorProto, helper, numpy_helper

from modelyard.errors import ConfigError, DataError, NotFound
from modelyard.model_package import PACKAGE_FILE, TRANSFORM_FILE, ModelPackage, PackageSpec
from modelyard.runtime import RuntimeSpec, open_runtime
from modelyard.task_kinds import Target
from modelyard.transform import FeatureScale, FittedTransform


def save_linear(path: Path, weight: np.ndarray) -> None:
    """An ONNX file that multiplies by ``weight`` (width, k)."""
    width, num_outputs = weight.shape
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", num_outputs])],
        [numpy_helper.from_array(weight.astype(np.float32), "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two forms over columns a and b: one answers the larger column, the other the smaller one."""
    save_linear(tmp_path / "larger.onnx", np.eye(2))
    save_linear(tmp_path / "smaller.onnx", -np.eye(2))
    spec = PackageSpec(
        target=Target(column="kind", classes=["ant", "bee"]),
        forms={name: RuntimeSpec(file=f"{name}.onnx", precision="fp32") for name in ("larger", "smaller")},
        default_form="larger",
    )
    transform = FittedTransform(
        features=[FeatureScale(name="a", offset=0, scale=2), FeatureScale(name="b", offset=0, scale=2)]
    )
    (tmp_path / PACKAGE_FILE).write_text(spec.model_dump_json())
    (tmp_path / TRANSFORM_FILE).write_text(transform.model_dump_json())
    return tmp_path


def test_it_applies_its_own_transform(folder: Path):
    """Raw rows in, raw network outputs out."""
    package = ModelPackage.open(folder)
    outputs = package.outputs(np.array([[2.0, 4.0]]))
    assert outputs.tolist() == [[1.0, 2.0]]
    assert outputs.dtype == np.float32
    assert package.decode(outputs)["label"].tolist() == ["bee"]


def test_a_form_is_chosen_by_name(folder: Path):
    """The default one unless named; an unknown one is an error that lists those there are."""
    rows = np.array([[2.0, 4.0]])
    assert ModelPackage.open(folder).form == "larger"
    smaller = ModelPackage.open(folder, "smaller")
    assert smaller.decode(smaller.outputs(rows))["label"].tolist() == ["ant"]
    with pytest.raises(NotFound, match="larger, smaller"):
        ModelPackage.open(folder, "int3")


def test_predict_keeps_the_index(folder: Path):
    """MLflow's contract: a frame in, a frame of the same index out, columns found by name."""
    frame = pd.DataFrame({"b": [1.0, 5.0], "a": [3.0, 2.0]}, index=[7, 9])
    answers = ModelPackage.open(folder).predict(frame)
    assert answers.index.tolist() == [7, 9]
    assert answers["label"].tolist() == ["ant", "bee"]


def test_a_damaged_file_is_named(folder: Path):
    """The engine's refusal becomes an error with the file's name."""
    (folder / "larger.onnx").write_bytes(b"not a model")
    with pytest.raises(DataError, match=r"larger\.onnx"):
        ModelPackage.open(folder)


def test_an_unknown_engine_is_refused(folder: Path):
    """The error lists the engines there are."""
    spec = RuntimeSpec.model_construct(engine="abacus", file="larger.onnx", precision="fp32")
    with pytest.raises(ConfigError, match="onnxruntime"):
        open_runtime(spec, folder)
