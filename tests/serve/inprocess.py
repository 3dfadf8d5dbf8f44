"""An endpoint within the test's own process, with bounds of the test's own; its workers and store are real."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import httpx

from modelyard.revisions import ServedVersion
from modelyard.serve.app import EndpointApp
from modelyard.serve.limits import Limits
from modelyard.serve.program import build
from modelyard.serve.server import http_server, listen
from modelyard.settings import Settings
from modelyard.storage import Store
from tests.serve.packages import roll_out
from tests.serve.processes import free_port


@dataclass
class Inside:
    """What a test reaches without a connection."""

    app: EndpointApp
    client: httpx.AsyncClient
    worker_pid: int
    settings: Settings

    @asynccontextmanager
    async def listening(self, context: ssl.SSLContext | None = None) -> AsyncGenerator[int]:
        """The same app behind its real HTTP server, on this port; over TLS where a context is given."""
        own = self.settings.model_copy(update={"endpoint_port": free_port()})
        server = http_server(self.app, context)
        serving = asyncio.create_task(server.serve(sockets=[listen(own)]))
        while not server.started:  # noqa: ASYNC110 (uvicorn has no event for it)
            await asyncio.sleep(0.005)
        yield own.endpoint_port
        server.should_exit = True
        await serving


@asynccontextmanager
async def endpoint(
    settings: Settings,
    store: Store,
    version: ServedVersion,
    home: Path,
    others: Sequence[ServedVersion] = (),
    keys: Literal["auto", "required"] = "auto",
    **bounds: Any,
) -> AsyncGenerator[Inside]:
    """Serves a version of `digits`, and others beside it."""
    own = settings.model_copy(
        update={
            "home": home,
            "trusted_keys": settings.trusted_keys_folder,
            "endpoint_name": f"test-{uuid4().hex[:8]}",
            "endpoint_admin_token": None,
            "endpoint_keys": keys,
        }
    )
    roll_out(store, own.endpoint_name, version, *others)
    app, reconciler = build(own, Limits(**bounds))
    following = asyncio.create_task(reconciler.run())
    try:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://endpoint") as client:
            async with asyncio.timeout(60):
                while not reconciler.status().serving:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            yield Inside(app, client, app.inferences.router.table.routes["digits"].stable.worker_pid or 0, own)
    finally:
        following.cancel()
        await asyncio.wait([following])
        await reconciler.close()
