"""Weights of matrix products in 4 or 8 bits, a scale and a zero point a block: onnxruntime's `MatMulNBits`."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from modelyard.compress.export import save_onnx
from modelyard.compress.techniques import Int4Weights, Int8Weights
from modelyard.errors import ConversionFailed

OPERATOR = "MatMulNBits"
# The fastest way of computing: inputs are rounded to int8 row by row, block by block, whatever else is in the batch.
ACCURACY_LEVEL = 4


def block_weights(float_file: Path, path: Path, technique: Int4Weights | Int8Weights) -> None:
    """Round weights to the nearest step of their block, as onnxruntime does it, and multiply them as they are.

    Raises:
        ConversionFailed: the network has no matrix product with constant weights.
    """
    model = onnx.load(float_file)
    matmuls_(model)
    bits = 4 if isinstance(technique, Int4Weights) else 8
    with _quiet():
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        quantizer = MatMulNBitsQuantizer(
            model, bits=bits, block_size=technique.block_size, accuracy_level=ACCURACY_LEVEL, op_types_to_quantize=("MatMul",)
        )  # fmt: skip
        quantizer.process()
    made: ModelProto = cast("Any", quantizer.model).model
    if all(node.op_type != OPERATOR for node in made.graph.node):
        raise ConversionFailed(f"{float_file.name} has no matrix product with weights of its own")
    del made.graph.value_info[:]
    save_onnx(made, path)


def matmuls_(model: ModelProto) -> None:
    """Write each plain `Gemm` with constant weights as a product and a sum, in place: only products are quantized."""
    weights = {weight.name: weight for weight in model.graph.initializer}
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        nodes += _as_matmul(node, weights) if _is_plain_gemm(node) and node.input[1] in weights else [node]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(weights.values())


def _is_plain_gemm(node: NodeProto) -> bool:
    if node.op_type != "Gemm":
        return False
    given = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    return (given.get("alpha", 1.0), given.get("beta", 1.0), given.get("transA", 0)) == (1.0, 1.0, 0)


def _as_matmul(node: NodeProto, weights: dict[str, TensorProto]) -> list[NodeProto]:
    name = node.input[1]
    if any(one.name == "transB" and one.i for one in node.attribute):
        turned = f"{name}.transposed"
        weights[turned] = numpy_helper.from_array(numpy_helper.to_array(weights.pop(name)).T.copy(), turned)
        name = turned
    if len(node.input) == 2:
        return [helper.make_node("MatMul", [node.input[0], name], [node.output[0]], name=node.name)]
    product = f"{node.output[0]}.product"
    return [
        helper.make_node("MatMul", [node.input[0], name], [product], name=node.name),
        helper.make_node("Add", [product, node.input[2]], [node.output[0]], name=f"{node.name}.bias"),
    ]


@contextmanager
def _quiet() -> Generator[None]:
    """The quantizer tells of every node, and has the whole program log what it says from its import on."""
    root, logger = logging.getLogger(), logging.getLogger("onnxruntime.quantization.matmul_nbits_quantizer")
    handlers, levels = list(root.handlers), (root.level, logger.level)
    try:
        logger.setLevel(logging.ERROR)
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(levels[0])
        logger.setLevel(levels[1])
