"""The same model behind Ray Serve, one replica on this machine: `ray_app.py <port>`."""

from __future__ import annotations

import sys
import time

from onnx_model import Model  # ty: ignore[import-not-found]
from ray import serve
from starlette.requests import Request
from starlette.responses import Response


@serve.deployment(num_replicas=1, ray_actor_options={"num_cpus": 0.1})
class Onnx:
    """JSON is parsed and written by the model's own code."""

    def __init__(self) -> None:
        self._model = Model.from_environment()

    async def __call__(self, request: Request) -> Response:
        if request.url.path == "/ready":
            return Response()
        return Response(self._model.answer(await request.body()), media_type="application/json")


if __name__ == "__main__":
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(Onnx.bind(), name="bench")
    while True:
        time.sleep(60)
