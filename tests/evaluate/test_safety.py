"""ONNX files that nobody should load."""

from __future__ import annotations

import re
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


@pytest.mark.parametrize("place", ["initializer", "constant", "branch"])
@pytest.mark.parametrize("location", ["../../etc/passwd", "beside.data"])
def test_weights_elsewhere_are_refused(
    network: Path, place: str, location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A path out of the package would read whatever lies there, one beside the network what somebody put there; also where a
    constant or a branch names it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "beside.data").write_bytes(bytes(64))
    model = onnx.load(network)
    outside = TensorProto(name="outside", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    outside.external_data.add(key="location", value=location)
    constant = helper.make_node("Constant", [], ["c"], value=outside)
    if place == "initializer":
        model.graph.initializer.append(outside)
    elif place == "constant":
        model.graph.node.append(constant)
    else:
        output = helper.make_tensor_value_info("c", TensorProto.FLOAT, None)
        branch = helper.make_graph([constant], "branch", [], [output])
        flag = helper.make_node("Constant", [], ["f"], value=helper.make_tensor("f", TensorProto.BOOL, [], [True]))
        chosen = helper.make_node("If", ["f"], ["o"], then_branch=branch, else_branch=branch)
        model.graph.node.extend([flag, chosen])
    network.write_bytes(model.SerializeToString())
    with pytest.raises(DataError, match=rf"float\.onnx .*{re.escape(location)}"):
        refuse_unsafe_networks(network.parent)
