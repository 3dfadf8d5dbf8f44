"""The same model behind BentoML; run by it, in an environment of its own: `bentoml serve bentoml_app:Onnx`."""

from __future__ import annotations

from typing import Any

import bentoml  # ty: ignore[import-not-found]
import numpy as np
from onnx_model import Model  # ty: ignore[import-not-found]


@bentoml.service(workers=1)
class Onnx:
    """BentoML reads and writes the JSON."""

    def __init__(self) -> None:
        self._model = Model.from_environment()

    @bentoml.api
    def infer(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        tensor = inputs[0]
        outputs = self._model.run(np.asarray(tensor["data"], dtype=np.float32).reshape(tensor["shape"]))
        return {"outputs": [{"name": "outputs", "shape": list(outputs.shape), "data": outputs.reshape(-1).tolist()}]}
