"""The same model behind starlette, as most people would write it.

BENCH_MODEL=model.onnx uvicorn --factory benchmarks.peers.starlette_app:app
"""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from benchmarks.peers.onnx_model import Model


def app() -> Starlette:
    """One route for readiness, one for inference."""
    model = Model.from_environment()

    async def infer(request: Request) -> Response:
        return Response(model.answer(await request.body()), media_type="application/json")

    async def ready(_: Request) -> Response:
        return Response(b"{}")

    return Starlette(routes=[Route("/ready", ready), Route("/infer", infer, methods=["POST"])])
