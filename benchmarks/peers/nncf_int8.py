"""NNCF's quantization of an ONNX file for OpenVINO, as its guide begins; run in an environment of its own.

python nncf_int8.py plain|transformer FLOAT.onnx SAMPLES.npz OUT.xml
"""

from __future__ import annotations

import sys

import nncf
import numpy as np
import openvino


def main(kind: str, float_file: str, samples: str, out: str) -> None:
    """`nncf.quantize` with samples of one row; ``transformer`` tells it what it quantizes."""
    with np.load(samples) as file:
        inputs = {name: file[name] for name in file}
    rows = [
        {name: values[at : at + 1] for name, values in inputs.items()} for at in range(len(next(iter(inputs.values()))))
    ]
    model_type = nncf.ModelType.TRANSFORMER if kind == "transformer" else None
    model = openvino.convert_model(float_file)
    openvino.save_model(
        nncf.quantize(model, nncf.Dataset(rows), subset_size=len(rows), model_type=model_type),
        out, compress_to_fp16=False,
    )  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
