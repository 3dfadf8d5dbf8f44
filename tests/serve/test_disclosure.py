"""How much of an answer is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from modelyard.settings import Settings
from modelyard.storage import Store
from tests.serve.inprocess import endpoint
from tests.serve.load import BODY
from tests.serve.packages import ROWS, LinearModel, publish_version

INFER = "/v2/models/digits/infer"


async def test_answers_tell_as_much_as_they_may(settings: Settings, store: Store, tmp_path: Path):
    """Two decimals in every protocol, and no raw outputs: neither in answers nor in metadata, and not for the asking;
    golden rows are still compared in full."""
    chosen = settings.model_copy(update={"endpoint_decimals": 2, "endpoint_raw_outputs": False})
    outputs = LinearModel(4).outputs(ROWS[:1])[0]
    likely = np.exp(outputs - outputs.max())
    expected = float((likely / likely.sum()).max().round(2))
    async with endpoint(chosen, store, publish_version(store, "4"), tmp_path) as inside:
        told = (await inside.client.post(INFER, json=BODY)).json()["outputs"]
        assert [output["name"] for output in told] == ["label", "probability"]
        assert told[1]["data"] == [expected]
        scored = await inside.client.post("/invocations", json={"instances": [ROWS[0].tolist()]})
        assert scored.json()["predictions"][0]["probability"] == expected
        described = (await inside.client.get("/v2/models/digits")).json()["outputs"]
        assert [output["name"] for output in described] == ["label", "probability"]
        asked = await inside.client.post(INFER, json={**BODY, "outputs": [{"name": "outputs"}]})
        assert (asked.status_code, "outputs" in asked.json()["error"]) == (400, True)


async def test_decimals_alone_keep_the_outputs(settings: Settings, store: Store, tmp_path: Path):
    """Raw outputs stay where they may, rounded like the rest."""
    chosen = settings.model_copy(update={"endpoint_decimals": 1})
    async with endpoint(chosen, store, publish_version(store, "4"), tmp_path) as inside:
        told = (await inside.client.post(INFER, json=BODY)).json()["outputs"]
    np.testing.assert_allclose(told[-1]["data"], LinearModel(4).outputs(ROWS[:1])[0].round(1), atol=1e-6)
