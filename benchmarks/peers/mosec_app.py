"""The same model behind mosec; run by it, in an environment of its own: `mosec_app.py --port <port>`."""

from __future__ import annotations

from mosec import Server, Worker  # ty: ignore[import-not-found]
from onnx_model import Model  # ty: ignore[import-not-found]


class Onnx(Worker):
    """JSON is parsed and written by the model's own code, as in the uvicorn apps."""

    def __init__(self) -> None:
        super().__init__()
        self._model = Model.from_environment()

    def deserialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: bytes) -> bytes:
        return self._model.answer(data)

    def serialize(self, data: bytes) -> bytes:
        return data


if __name__ == "__main__":
    server = Server()
    server.append_worker(Onnx, num=1)
    server.run()
