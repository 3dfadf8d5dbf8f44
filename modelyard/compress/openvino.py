"""Forms for OpenVINO: the network as its intermediate representation, plain or quantized by NNCF."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np

from modelyard.compress.techniques import NncfInt8
from modelyard.runtime import RuntimeSpec

SAMPLE_ROWS = 256


def plain_form(float_file: Path, folder: Path, name: str, precision: str) -> RuntimeSpec:
    """A float ONNX file as OpenVINO's own; ``bf16`` stores weights as fp16 and computes in bf16."""
    import openvino

    half = precision == "bf16"
    spec = _spec(name, precision, ["bf16"] if half else [])
    _save(openvino.convert_model(str(float_file)), folder, spec, half=half)
    return spec


def int8_form(float_file: Path, folder: Path, name: str, technique: NncfInt8, rows: np.ndarray) -> RuntimeSpec:
    """Post-training quantization by `nncf.quantize`.

    Args:
        rows: (n, width) float32 that fix the ranges.
    """
    # NNCF takes the mean of the samples' own ranges: samples of single rows would cut most of what is to come.
    samples = np.array_split(rows, math.ceil(len(rows) / SAMPLE_ROWS))
    return save_quantized(float_file, folder, name, samples, transformer=technique.transformer)


def save_quantized(float_file: Path, folder: Path, name: str, samples: list[Any], *, transformer: bool) -> RuntimeSpec:
    """The same for a network of any inputs: ``samples`` are inputs as the model takes them."""
    import openvino

    spec = _spec(name, "int8", ["vnni"])
    model = openvino.convert_model(str(float_file))
    _save(quantized(model, samples, transformer=transformer), folder, spec, half=False)
    return spec


def quantized(model: Any, samples: list[Any], *, transformer: bool) -> Any:
    """An OpenVINO model quantized by NNCF with its defaults; ``samples`` are inputs as the model takes them."""
    import nncf

    nncf.set_log_level(logging.ERROR)
    kind = nncf.ModelType.TRANSFORMER if transformer else None
    return nncf.quantize(model, nncf.Dataset(samples), subset_size=len(samples), model_type=kind)


def _spec(name: str, precision: str, instructions: list[str]) -> RuntimeSpec:
    return RuntimeSpec(
        engine="openvino",
        file=f"{name}.xml",
        weights_file=f"{name}.bin",
        precision=precision,
        instructions=instructions,
    )


def _save(model: Any, folder: Path, spec: RuntimeSpec, *, half: bool) -> None:
    """Write both files; what tells where and by which version they were made is left out."""
    import openvino

    path = folder / spec.file
    openvino.save_model(model, str(path), compress_to_fp16=half)
    document = ET.parse(path)  # noqa: S314 (written a moment ago)
    root = document.getroot()
    for told in root.findall("rt_info"):
        root.remove(told)
    _shorten_(root)
    # Of ">" in a value only its entity is written: this ends elements alone.
    path.write_bytes(ET.tostring(root, encoding="utf-8", xml_declaration=True).replace(b" />", b"/>"))


def _shorten_(root: ET.Element) -> None:
    """Leave out what no reader asks for: names and shapes of what lies between inputs and outputs, and indentation.

    OpenVINO infers the shapes anew. Of a small transformer quantized to int8 this is two fifths of the description, and the
    description 1.5 % of its size.
    """
    asked, named = {"Parameter", "Result"}, _before_results(root)
    for number, layer in enumerate(root.iterfind("layers/layer")):
        if layer.get("type") in asked:
            continue
        layer.set("name", str(number))
        for port in layer.iterfind("input/port"):
            port.attrib.pop("precision", None)
            port[:] = []
        if layer.get("id") not in named:
            for port in layer.iterfind("output/port"):
                port.attrib.pop("names", None)
                port[:] = []
    for part in root.iter():
        part.tail = None
        if part.text and not part.text.strip():
            part.text = None


def _before_results(root: ET.Element) -> set[str | None]:
    """Layers whose outputs are the network's: they carry the outputs' names."""
    results = {layer.get("id") for layer in root.iterfind("layers/layer") if layer.get("type") == "Result"}
    return {edge.get("from-layer") for edge in root.iterfind("edges/edge") if edge.get("to-layer") in results}
