"""One function a technique: a float ONNX file in, a smaller one out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.shape_inference import quant_pre_process

from modelyard.compress.config import DynamicInt8, Technique
from modelyard.compress.export import save_onnx


def dynamic_int8(float_file: Path, path: Path, config: DynamicInt8) -> None:
    """Dynamic quantization after Jacob et al. (2018), arXiv 1712.05877, as onnxruntime does it.

    Only weights are stored in int8; their scales follow from the weights alone, so no data is needed.
    """
    prepared = path.with_suffix(".prepared.onnx")
    # Shapes are inferred for it; onnxruntime's own graph rewriting is left out: it leaves traces of its build.
    quant_pre_process(float_file, prepared, skip_optimization=True)
    quantize_dynamic(
        prepared,
        path,
        weight_type=QuantType.QInt8,
        per_channel=config.per_channel,
        reduce_range=config.reduce_range,
    )
    prepared.unlink()
    save_onnx(onnx.load(path), path)


TECHNIQUES: dict[type[Technique], Callable[[Path, Path, Technique], None]] = {DynamicInt8: dynamic_int8}


def apply_technique(float_file: Path, path: Path, technique: Technique) -> None:
    """Make one smaller form."""
    TECHNIQUES[type(technique)](float_file, path, technique)
