"""One function a technique of onnxruntime: a float ONNX file in, a smaller one out."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from modelyard.compress.export import INPUT, save_onnx
from modelyard.compress.techniques import DynamicInt8, StaticInt8
from modelyard.errors import ConversionFailed
from modelyard.transform.text import PORTION_TOKENS

# Operators that hold weights. Everything else is small, and more exact in float.
WEIGHTED = ["Conv", "Gemm", "MatMul"]
METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}


def static_int8(
    float_file: Path,
    path: Path,
    config: StaticInt8,
    rows: np.ndarray,
    scales: Mapping[str, list[dict[str, Any]]] | None = None,
) -> None:
    """Post-training quantization after Jacob et al. (2018), arXiv 1712.05877, with a scale for each output of a layer
    as in Krishnamoorthi (2018), arXiv 1806.08342; onnxruntime's `quantize_static`.

    Weights and the inputs of the layers that hold them become int8; what such a layer puts out stays float until the
    next one. Were the network's last outputs quantized too, they would move by 6 % of the largest, not by 1 %.

    Args:
        rows: (n, width) float32, n >= 1; what they make each layer put out decides the ranges.
        scales: tensor -> scale and zero point that are known already, as onnxruntime's ``TensorQuantOverrides`` has them.
    """
    with _prepared(float_file, path) as prepared, redirect_stdout(StringIO()):  # the histogram methods print
        quantize_static(
            prepared,
            path,
            _OneBatch(rows),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=WEIGHTED,
            per_channel=config.per_channel,
            reduce_range=config.reduce_range,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=METHODS[config.calibration],
            extra_options={
                "OpTypesToExcludeOutputQuantization": WEIGHTED,
                "MatMulConstBOnly": True,
                **({"TensorQuantOverrides": dict(scales)} if scales else {}),
            },
        )


def dynamic_int8(float_file: Path, path: Path, config: DynamicInt8) -> None:
    """Dynamic quantization after Jacob et al. (2018), arXiv 1712.05877, as onnxruntime does it.

    Only weights are stored in int8; their scales follow from the weights alone, so no data is needed.
    """
    with _prepared(float_file, path) as prepared:
        quantize_dynamic(
            prepared,
            path,
            weight_type=QuantType.QInt8,
            per_channel=config.per_channel,
            reduce_range=config.reduce_range,
        )


def half_weights(float_file: Path, path: Path) -> None:
    """Store weights as fp16, each followed by a conversion to fp32 that onnxruntime carries out once, at load.

    Raises:
        ConversionFailed: a weight is too large for fp16.
    """
    model = onnx.load(float_file)
    graph = model.graph
    wide = [weight for weight in graph.initializer if weight.data_type == onnx.TensorProto.FLOAT and weight.dims]
    casts = [_halved_(weight) for weight in wide]
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    save_onnx(model, path)


def _halved_(weight: onnx.TensorProto) -> onnx.NodeProto:
    """Make a weight fp16, in place and under another name; the node that gives it back as fp32 under its own."""
    with np.errstate(over="ignore"):
        half = onnx.numpy_helper.to_array(weight).astype(np.float16)
    if not np.isfinite(half).all():
        raise ConversionFailed(f"the weight {weight.name} has values beyond 65504, the largest number of fp16")
    name = weight.name
    weight.CopyFrom(onnx.numpy_helper.from_array(half, f"{name}.fp16"))
    return onnx.helper.make_node("Cast", [weight.name], [name], to=onnx.TensorProto.FLOAT)


@contextmanager
def _prepared(float_file: Path, path: Path) -> Generator[Path]:
    """The float file as onnxruntime wants it, to be quantized into ``path``, which is put in order afterwards."""
    prepared = path.with_suffix(".prepared.onnx")
    try:
        _infer_shapes(float_file, prepared)
        yield prepared
        save_onnx(onnx.load(path), path)
    except Exception as failure:  # onnxruntime's own errors share no base class
        reason = (str(failure).strip().splitlines() or [type(failure).__name__])[0]
        raise ConversionFailed(f"{path.stem} cannot be made of {float_file.name}: {reason}") from failure
    finally:
        prepared.unlink(missing_ok=True)


def _infer_shapes(float_file: Path, prepared: Path) -> None:
    """Shapes are inferred anew, by ONNX's rules alone.

    The exporter also notes the shapes of weights, which the quantizer transposes and then trips over. Of onnxruntime's
    own preparation, the graph rewriting would leave traces of its build, and the symbolic inference gives up on
    transformers with an open sequence, after writing the half-finished model into the current folder.
    """
    model = onnx.load(float_file)
    del model.graph.value_info[:]
    onnx.save(onnx.shape_inference.infer_shapes(model), prepared)


class _OneBatch(CalibrationDataReader):
    """Rows as onnxruntime's calibration asks for them. One batch: its histograms need batches of one size."""

    def __init__(self, rows: np.ndarray) -> None:
        # Tokens are computed a few texts at a time; none of them gets narrower, for histograms need one size.
        some = max(1, PORTION_TOKENS // rows.shape[1]) if rows.dtype.kind == "i" else len(rows)
        whole = len(rows) - len(rows) % min(some, len(rows))
        self._batches = iter([{INPUT: rows[at : at + some]} for at in range(0, whole, some)])

    def get_next(self) -> dict[str, np.ndarray] | None:  # ty: ignore[incompatible-method-override] (None ends it)
        return next(self._batches, None)
