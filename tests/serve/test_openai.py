"""OpenAI's client at the endpoint."""

from __future__ import annotations

from pathlib import Path

import openai
import pytest

from modelyard.serve.keys import add_key
from modelyard.settings import Settings
from modelyard.storage import Store
from tests.serve.inprocess import endpoint
from tests.serve.packages import publish_version


async def test_the_openai_client_lists_the_models(settings: Settings, store: Store, tmp_path: Path):
    """With a key of the endpoint as its API key it lists and retrieves what is served; an unknown model and a wrong key
    are errors of its own kinds."""
    secret = add_key(tmp_path / "endpoint" / "keys.json", "alice", ["predict"], None)
    version = publish_version(store, "1")
    async with endpoint(settings, store, version, tmp_path, keys="required") as inside, inside.listening() as port:

        def client(key: str) -> openai.AsyncOpenAI:
            return openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key, max_retries=0)

        async with client(secret) as known, client("my_wrong") as unknown:
            assert [model.id async for model in known.models.list()] == ["digits"]
            found = await known.models.with_raw_response.retrieve("digits")
            assert found.parse().owned_by == "modelyard"
            assert found.parse().created > 1_700_000_000
            assert found.headers["Modelyard-Model-Version"] == "1"
            with pytest.raises(openai.NotFoundError) as refused:
                await known.models.retrieve("nobody")
            assert "serves no model 'nobody'" in str(refused.value.response.text)
            with pytest.raises(openai.AuthenticationError):
                await unknown.models.list()
