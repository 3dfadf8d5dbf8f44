"""A bare ASGI app around a model: the limit of any server that stands on uvicorn, as the endpoint does.

BENCH_MODEL=model.onnx uvicorn --factory benchmarks.peers.bare_app:app
"""

from __future__ import annotations

from typing import Any

from benchmarks.peers.onnx_model import Model


class App:
    """Any path, any method."""

    def __init__(self) -> None:
        self._model = Model.from_environment()

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        content = self._model.answer(body) if body else b"{}"
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})


def app() -> App:
    """For `uvicorn --factory`."""
    return App()
