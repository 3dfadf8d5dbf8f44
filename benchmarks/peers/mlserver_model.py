"""The same model as a custom runtime of MLServer; imported by MLServer, in an environment of its own."""

from __future__ import annotations

import os

import numpy as np
import onnxruntime
from mlserver import MLModel  # ty: ignore[import-not-found]
from mlserver.codecs import NumpyCodec  # ty: ignore[import-not-found]
from mlserver.types import InferenceRequest, InferenceResponse  # ty: ignore[import-not-found]


class OnnxModel(MLModel):
    """One session of one thread."""

    async def load(self) -> bool:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(os.environ["BENCH_MODEL"], options)
        self._input = self._session.get_inputs()[0].name
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        rows = NumpyCodec.decode_input(payload.inputs[0]).astype(np.float32)
        outputs = self._session.run(None, {self._input: rows})[0]
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("outputs", outputs)])
