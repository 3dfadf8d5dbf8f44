"""A float network as a file for an engine, by each form technique."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from modelyard.compress.block_weights import block_weights
from modelyard.compress.calibration import calibration_rows
from modelyard.compress.export import example_of, export_onnx, open_axes
from modelyard.compress.learned import learned_int8
from modelyard.compress.quantize import dynamic_int8, half_weights, static_int8
from modelyard.compress.techniques import (
    AcceleratorOnly,
    DynamicInt8,
    Float32,
    FormTechnique,
    HalfWeights,
    Int4Weights,
    Int8Weights,
    NncfInt8,
    StaticInt8,
)
from modelyard.errors import ConversionFailed
from modelyard.models.simulate import simulated
from modelyard.runtime import RuntimeSpec
from modelyard.runtime.hosts import require_host


def make_form(
    network: nn.Module,
    width: int,
    folder: Path,
    name: str,
    technique: FormTechnique | None,
    *,
    calibration: np.ndarray,
    float_file: Path | None = None,
) -> RuntimeSpec:
    """Write one form of a network into a folder.

    Args:
        width: of its input.
        name: of the files, without a suffix.
        technique: None: float ONNX.
        calibration: (n, width) rows of the training split.
        float_file: the network as float ONNX, where somebody has exported it already: that takes seconds.

    Raises:
        ConversionFailed: the network cannot be exported or quantized, or there are too few or impossible rows.
        MissingExtra: the engine is not installed.
    """
    if simulated(network):
        return _learned(network, width, folder, name, technique, calibration)
    if isinstance(technique, AcceleratorOnly):
        raise ConversionFailed(missing_accelerator(technique))
    if isinstance(technique, Float32) and technique.engine == "torch":
        return _torch_program(network, width, folder, name, technique)
    if float_file is None:
        float_file = folder / f"{name}.onnx"
        export_onnx(network, width, float_file)
    if technique is None:
        return RuntimeSpec(file=float_file.name, precision="fp32")
    return from_onnx(float_file, folder, name, technique, calibration)


def from_onnx(
    float_file: Path, folder: Path, name: str, technique: FormTechnique, calibration: np.ndarray
) -> RuntimeSpec:
    """One form of a float ONNX file.

    Args:
        calibration: (n, width) rows of the training split, for the techniques that look at data.

    Raises:
        ConversionFailed: it cannot be quantized, or there are too few or impossible rows.
        MissingExtra: the engine is not installed.
    """
    spec = RuntimeSpec(file=f"{name}.onnx", precision="int8")
    match technique:
        case StaticInt8():
            rows = calibration_rows(calibration, technique.calibration_rows)
            static_int8(float_file, folder / spec.file, technique, rows)
            return spec if technique.reduce_range else spec.model_copy(update={"instructions": ["vnni"]})
        case DynamicInt8():
            dynamic_int8(float_file, folder / spec.file, technique)
            return spec if technique.reduce_range else spec.model_copy(update={"instructions": ["vnni"]})
        case HalfWeights():
            half_weights(float_file, folder / spec.file)
            return spec.model_copy(update={"precision": "fp32"})
        case Int4Weights() | Int8Weights():
            block_weights(float_file, folder / spec.file, technique)
            return spec.model_copy(update={"precision": "int4" if isinstance(technique, Int4Weights) else "int8"})
        case AcceleratorOnly():
            raise ConversionFailed(missing_accelerator(technique))
        case Float32() | NncfInt8():
            require_host(name, "openvino", [])
            from modelyard.compress.openvino import int8_form, plain_form

            if isinstance(technique, Float32):
                return plain_form(float_file, folder, name, technique.precision)
            rows = calibration_rows(calibration, technique.calibration_rows)
            return int8_form(float_file, folder, name, technique, rows)


def missing_accelerator(technique: AcceleratorOnly) -> str:
    """Why a technique whose kernels need a GPU is not tried here."""
    needed = f"the kernels of {technique.technique} need a CUDA device of compute capability 8.0 or more"
    if not torch.cuda.is_available():
        return f"{needed}, and this machine has none"
    return f"{needed}, and the endpoint executes forms on processors alone so far"


def _learned(
    network: nn.Module, width: int, folder: Path, name: str, technique: FormTechnique | None, rows: np.ndarray
) -> RuntimeSpec:
    if technique is not None:
        raise ConversionFailed(
            f"the network was trained to be int8: {technique.technique} finds no float weights in it"
        )
    return RuntimeSpec(file=learned_int8(network, width, folder, name, rows), precision="int8")


def _torch_program(network: nn.Module, width: int, folder: Path, name: str, technique: Float32) -> RuntimeSpec:
    from modelyard.runtime.torch_program import save_program

    half = technique.precision == "bf16"
    program = torch.export.export(
        (InBf16(network) if half else network).eval(),
        (example_of(network, width),),
        dynamic_shapes=(open_axes(network, width),),
    )
    spec = RuntimeSpec(
        engine="torch", file=f"{name}.pt2", precision=technique.precision, instructions=["bf16"] if half else []
    )
    save_program(program, folder / spec.file)
    return spec


class InBf16(nn.Module):
    """A network whose weights and arithmetic are bf16, between float32 inputs and outputs."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.to(torch.bfloat16)
        self._reads_tokens = getattr(network, "reads_tokens", False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.network(features if self._reads_tokens else features.to(torch.bfloat16)).float()
