"""A network that was trained to compute as int8 will, as the int8 file that it was trained for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnxruntime.quantization import QuantType
from torch import nn

from modelyard.compress.chains import layers_of
from modelyard.compress.export import export_onnx
from modelyard.compress.networks import seen_by
from modelyard.compress.quantize import WEIGHTED, static_int8
from modelyard.compress.techniques import StaticInt8
from modelyard.errors import ConversionFailed
from modelyard.models.simulate import Simulated, simulate_, simulated, weight_steps

# Where a sum lands between two steps, one engine rounds it up and another down; of the largest output.
TOLERANCE = 0.02


def prepare_(network: nn.Module, rows: torch.Tensor) -> list[str]:
    """Have every layer compute as its int8 form will, with ranges that rows (n, width) fix; the layers' names.

    Raises:
        ConversionFailed: it reads tokens, or has no layers of this kind.
    """
    if getattr(network, "reads_tokens", False):
        raise ConversionFailed(f"{type(network).__name__} reads tokens: quantize_aware knows networks of numbers alone")
    names = list(layers_of(network))
    seen = seen_by(network, names, rows)
    if missing := [name for name in names if name not in seen]:
        raise ConversionFailed(f"{type(network).__name__} never runs its layer {missing[0]}")
    simulate_(network, names)
    for name, layer in simulated(network).items():
        layer.range.set_(seen[name])
    return names


def learned_int8(network: nn.Module, width: int, folder: Path, name: str, rows: np.ndarray) -> str:
    """Write the int8 file with the scales that training left; its name.

    Args:
        network: with simulated layers.
        rows: (n, width), n >= 1; they decide nothing.
    """
    layers = simulated(network)
    float_file = folder / f"{name}.float.onnx"
    try:
        for layer in layers.values():
            layer.simulates = False
        export_onnx(network, width, float_file)
    finally:
        for layer in layers.values():
            layer.simulates = True
    path = folder / f"{name}.onnx"
    static_int8(float_file, path, StaticInt8(), rows[:1], scales(onnx.load(float_file), layers))
    float_file.unlink()
    return path.name


def scales(model: onnx.ModelProto, layers: dict[str, Simulated]) -> dict[str, list[dict[str, Any]]]:
    """Tensor -> its scale and zero point, as onnxruntime's ``TensorQuantOverrides`` has them.

    Raises:
        ConversionFailed: a layer is not in the file under its own name.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for node in model.graph.node:
        layer = layers.get(node.input[1].removesuffix(".weight")) if node.op_type in WEIGHTED else None
        if layer is None:
            continue
        step, zero = layer.range.steps()
        found[node.input[0]] = [_entry(step[0], int(zero[0]), QuantType.QUInt8)]
        found[node.input[1]] = [_entry(one, 0, QuantType.QInt8) | {"axis": 0} for one in weight_steps(layer.weight)]
    if len(found) != 2 * len(layers):
        raise ConversionFailed(
            f"{len(found) // 2} of {len(layers)} trained layers are in the exported file by their names"
        )
    return found


def _entry(step: torch.Tensor, zero: int, kind: QuantType) -> dict[str, Any]:
    return {
        "scale": np.array(step.item(), dtype=np.float32),
        "zero_point": np.array(zero, dtype=np.uint8 if kind == QuantType.QUInt8 else np.int8),
        "quant_type": kind,
    }
