"""ONNX files that nobody should load."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from modelyard.errors import DataError
from modelyard.evaluate.safety import refuse_unsafe_networks
from tests.test_model_package import save_linear


@pytest.fixture
def network(tmp_path: Path) -> Path:
    save_linear(tmp_path / "float.onnx", np.eye(3))
    return tmp_path / "float.onnx"


def test_a_plain_network_is_accepted(network: Path):
    """One file, operators of the standard."""
    refuse_unsafe_networks(network.parent)


def test_half_a_file_is_refused(network: Path):
    """Cut off in the middle, it is named and not executed."""
    network.write_bytes(network.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"float\.onnx is no whole ONNX network"):
        refuse_unsafe_networks(network.parent)


@pytest.mark.parametrize("place", ["graph", "branch"])
def test_operators_of_a_foreign_library_are_refused(network: Path, place: str):
    """Also where they hide in a branch."""
    model = onnx.load(network)
    stranger = helper.make_node("Call", ["x"], ["z"], domain="com.example")
    if place == "graph":
        model.graph.node.append(stranger)
    else:
        output = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
        branch = helper.make_graph([stranger], "branch", [], [output])
        flag = helper.make_node(
            "Constant", [], ["flag"], value=helper.make_tensor("flag", TensorProto.BOOL, [], [True])
        )
        model.graph.node.extend(
            [flag, helper.make_node("If", ["flag"], ["w2"], then_branch=branch, else_branch=branch)]
        )
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    onnx.save(model, network)
    with pytest.raises(DataError, match=r"operators of a library of its own: com\.example::Call"):
        refuse_unsafe_networks(network.parent)


def test_weights_elsewhere_are_refused(network: Path):
    """A path out of the package would read whatever lies there."""
    model = onnx.load(network)
    (weight,) = model.graph.initializer
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../../etc/passwd")
    onnx.save(model, network)
    with pytest.raises(DataError, match=r"float\.onnx .*\.\./\.\./etc/passwd"):
        refuse_unsafe_networks(network.parent)
