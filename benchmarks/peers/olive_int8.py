"""Olive's quantization of an ONNX file; run in an environment of its own.

python olive_int8.py dynamic|static FLOAT.onnx SAMPLES.npz OUT.onnx
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ["OLIVE_DISABLE_TELEMETRY"] = "1"

import numpy as np
import olive  # ty: ignore[import-not-found]
import torch
from olive.data.registry import Registry  # ty: ignore[import-not-found]

# What `olive quantize --implementation ort` makes of an ONNX file, with or without data.
PASSES: dict[str, dict[str, Any]] = {
    "dynamic": {"type": "OnnxDynamicQuantization", "precision": "int8"},
    "static": {
        "type": "OnnxStaticQuantization", "precision": "int8", "act_precision": "uint8", "quant_format": "QDQ",
        "data_config": "samples",
    },
}  # fmt: skip


class Samples(torch.utils.data.Dataset):
    """Network inputs by name, one row at a time."""

    def __init__(self, path: str) -> None:
        with np.load(path) as file:
            self._inputs = {name: torch.from_numpy(file[name]) for name in file}

    def __len__(self) -> int:
        return len(next(iter(self._inputs.values())))

    def __getitem__(self, index: int) -> tuple[dict[str, torch.Tensor], int]:
        return {name: values[index] for name, values in self._inputs.items()}, 0


@Registry.register_dataset()
def samples_file(path: str, **_: object) -> Samples:
    """By this name the workflow asks for them."""
    return Samples(path)


def main(kind: str, float_file: str, samples: str, out: str) -> None:
    """One workflow of one pass."""
    with tempfile.TemporaryDirectory() as scratch:
        olive.run({
            "input_model": {"type": "ONNXModel", "model_path": float_file},
            "systems": {
                "here": {
                    "type": "LocalSystem",
                    "accelerators": [{"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}],
                }
            },
            "data_configs": [{
                "name": "samples", "type": "DataContainer",
                "load_dataset_config": {"type": "samples_file", "path": samples},
                "dataloader_config": {"batch_size": 1},
            }],
            "passes": {"quantize": PASSES[kind]}, "host": "here", "target": "here",
            "output_dir": f"{scratch}/out", "cache_dir": f"{scratch}/cache", "no_artifacts": True,
        })  # fmt: skip
        shutil.copy(Path(scratch, "out", "model.onnx"), out)


if __name__ == "__main__":
    main(*sys.argv[1:])
