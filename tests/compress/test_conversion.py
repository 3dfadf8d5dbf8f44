"""Conversions that must not get through, without a store."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from pydantic import ValidationError
from torch import nn

from modelyard.compress import CompressConfig, DynamicInt8, StaticInt8
from modelyard.compress.check import Parity, check_operators, check_parity, compare, require_finite, require_open_axes
from modelyard.compress.export import anonymise_, export_onnx
from modelyard.compress.latency import median_milliseconds
from modelyard.errors import ConversionFailed
from modelyard.runtime import RuntimeSpec, open_runtime


class Shifted:
    """A runtime that computes its parent's outputs and then something more."""

    input_width = 3

    def __init__(self, parent: nn.Module, shift: float) -> None:
        self.parent, self.shift = parent, shift

    def run(self, features: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return self.parent(torch.from_numpy(features)).numpy() + np.float32(self.shift)


PARENT = nn.Linear(3, 2)
ROWS = [np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)] * 2


def test_a_faithful_conversion_passes():
    """Every row is compared; equal outputs differ by nothing."""
    parity = compare(PARENT, Shifted(PARENT, 0), ROWS)
    assert parity == Parity(num_rows=40, largest_difference=0.0, agreement_fraction=1.0)
    check_parity("float", parity, 1e-6)


@pytest.mark.parametrize("shift", [0.5, math.nan, math.inf])
def test_a_wrong_conversion_fails_with_numbers(shift: float):
    """Also where it computes no numbers at all."""
    with pytest.raises(ConversionFailed, match=r"'float' differs .* over 40 validation rows, allowed is 0\.0001"):
        check_parity("float", compare(PARENT, Shifted(PARENT, shift), ROWS), 1e-4)


@pytest.mark.parametrize("shift", [math.nan, math.inf])
def test_a_form_that_answers_no_numbers_is_refused(shift: float):
    """One that may differ from the network, as int8 does, must still answer numbers."""
    with pytest.raises(ConversionFailed, match="'int8' answers NaN or infinity for some of 40 validation rows"):
        require_finite("int8", compare(PARENT, Shifted(PARENT, shift), ROWS))


def test_a_length_that_was_fixed_is_noticed(tmp_path: Path):
    """A form that reads texts takes them of any length, also where all the rows at hand are as long as its example was."""
    texts = np.ones((2, 8), dtype=np.int64)
    for length, refused in (("t", ""), (8, "it does not take texts of 3 tokens: .")):
        node = helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)
        save(tmp_path / "x.onnx", node, shape=["n", length], kind=TensorProto.INT64)
        runtime = open_runtime(RuntimeSpec(file="x.onnx", precision="fp32"), tmp_path)
        with pytest.raises(ConversionFailed, match=refused) if refused else nullcontext():
            require_open_axes(runtime, texts)


def test_no_rows_prove_nothing():
    """A comparison over an empty split is none."""
    with pytest.raises(ConversionFailed, match="no rows"):
        check_parity("float", compare(PARENT, Shifted(PARENT, 0), []), 1e-4)


class Deciding(nn.Module):
    """A network whose path depends on its data, which no static graph can hold."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features if features.sum().item() > 0 else -features


def test_a_network_that_cannot_be_exported_is_named(tmp_path: Path):
    """The exporter's many pages become one sentence."""
    with pytest.raises(ConversionFailed, match=r"^Deciding cannot be exported to ONNX: .") as caught:
        export_onnx(Deciding(), 3, tmp_path / "x.onnx")
    assert "\n" not in str(caught.value)


def save(
    path: Path,
    node: onnx.NodeProto,
    *domains: str,
    shape: Sequence[str | int] = ("n", 3),
    kind: int = TensorProto.FLOAT,
) -> Path:
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    opsets = [helper.make_opsetid("", 20), *(helper.make_opsetid(domain, 1) for domain in domains)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def test_foreign_operators_are_refused(tmp_path: Path):
    """An operator that only a special build executes would fail at the endpoint; better here."""
    node = helper.make_node("Magic", ["x"], ["y"], domain="acme")
    with pytest.raises(ConversionFailed, match=r"acme\.Magic"):
        check_operators(save(tmp_path / "x.onnx", node, "acme"))


def test_invalid_onnx_is_refused(tmp_path: Path):
    """An operator that ONNX does not have in its own domain is no model."""
    with pytest.raises(ConversionFailed, match=r"x\.onnx is not valid ONNX"):
        check_operators(save(tmp_path / "x.onnx", helper.make_node("Magic", ["x"], ["y"])))


def test_operators_are_counted(tmp_path: Path):
    """What a valid file consists of."""
    assert check_operators(save(tmp_path / "x.onnx", helper.make_node("Relu", ["x"], ["y"]))) == {"Relu": 1}


def test_anonymising_reaches_inner_graphs():
    """Branches and loop bodies have metadata too."""
    inner = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "inner", [], [])
    inner.node[0].metadata_props.add(key="stack", value="/home/me/model.py")
    outer = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    model = helper.make_model(helper.make_graph([outer], "outer", [], []), producer_name="me", doc_string="/tmp")
    anonymise_(model)
    assert b"/" not in model.SerializeToString()


def test_latency_takes_any_batch():
    """A batch larger than the rows at hand repeats them."""
    assert median_milliseconds(Shifted(PARENT, 0), ROWS[0], batch=64, repeats=3) > 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"default_form": "int3"},
        {"techniques": [StaticInt8(), DynamicInt8(form="int8")]},
        {"techniques": [StaticInt8(form="float")]},
        {"techniques": [{"technique": "alchemy"}]},
        {"parity_tolerance": 0},
    ],
)
def test_contradictory_configs_are_refused(wrong: dict):
    """A default form that is not made, two forms of one name, unknown techniques."""
    with pytest.raises(ValidationError):
        CompressConfig.model_validate(wrong)
