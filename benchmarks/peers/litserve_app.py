"""The same model behind LitServe; run by it, in an environment of its own: `litserve_app.py <port>`."""

import sys
from typing import Any

import litserve  # ty: ignore[import-not-found]
import numpy as np
from onnx_model import Model  # ty: ignore[import-not-found]


class Onnx(litserve.LitAPI):
    """One worker; LitServe reads and writes the JSON."""

    def setup(self, device: str) -> None:  # noqa: ARG002 (LitServe's signature)
        self._model = Model.from_environment()

    def decode_request(self, request: dict[str, Any]) -> np.ndarray:
        tensor = request["inputs"][0]
        return np.asarray(tensor["data"], dtype=np.float32).reshape(tensor["shape"])

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self._model.run(x)

    def encode_response(self, output: np.ndarray) -> dict[str, Any]:
        return {"outputs": [{"name": "outputs", "shape": output.shape, "data": output.reshape(-1).tolist()}]}


if __name__ == "__main__":
    server = litserve.LitServer(Onnx(), accelerator="cpu", workers_per_device=1)
    server.run(port=int(sys.argv[1]), host="127.0.0.1", generate_client_file=False, log_level="warning")
