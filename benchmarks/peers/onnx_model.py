"""The least a server can do with an ONNX model behind JSON: no checks, no versions, one request a call."""

from __future__ import annotations

import os

import numpy as np
import onnxruntime
import orjson

MODEL_VARIABLE = "BENCH_MODEL"


def open_session(path: str) -> onnxruntime.InferenceSession:
    """One thread, as the endpoint has it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


class Model:
    """One model, asked by v2 JSON."""

    def __init__(self, path: str) -> None:
        self._session = open_session(path)
        self._input = self._session.get_inputs()[0].name

    @classmethod
    def from_environment(cls) -> Model:
        return cls(os.environ[MODEL_VARIABLE])

    def run(self, rows: np.ndarray) -> np.ndarray:
        return np.asarray(self._session.run(None, {self._input: rows})[0])

    def answer(self, body: bytes) -> bytes:
        """A v2 request to a v2 answer."""
        tensor = orjson.loads(body)["inputs"][0]
        outputs = self.run(np.asarray(tensor["data"], dtype=np.float32).reshape(tensor["shape"]))
        described = {"name": "outputs", "datatype": "FP32", "shape": outputs.shape, "data": outputs.reshape(-1)}
        return orjson.dumps({"model_name": "bench", "outputs": [described]}, option=orjson.OPT_SERIALIZE_NUMPY)
