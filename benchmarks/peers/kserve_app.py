"""The same model behind KServe's Python server; run by it, in an environment of its own: `kserve_app.py --http_port ...`."""

from __future__ import annotations

import numpy as np
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer  # ty: ignore[import-not-found]
from onnx_model import Model as Onnx  # ty: ignore[import-not-found]


class Bench(Model):
    """KServe reads and writes the Open Inference Protocol."""

    def __init__(self) -> None:
        super().__init__("bench")
        self._onnx = Onnx.from_environment()
        self.ready = True

    async def predict(self, payload: InferRequest, *_: object, **__: object) -> InferResponse:
        rows = payload.inputs[0].as_numpy().astype(np.float32)
        outputs = self._onnx.run(rows)
        answer = InferOutput(name="outputs", shape=list(outputs.shape), datatype="FP32")
        answer.set_data_from_numpy(outputs, binary_data=False)
        return InferResponse(response_id=payload.id or "1", model_name=self.name, infer_outputs=[answer])


if __name__ == "__main__":
    ModelServer(workers=1, enable_grpc=False).start([Bench()])
