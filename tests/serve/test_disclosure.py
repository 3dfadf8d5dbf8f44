"""How much of an answer is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import orjson
import pytest

from modelyard.errors import ConfigError
from modelyard.serve.disclosure import UNTOLD, Disclosure
from modelyard.settings import Settings, load_settings
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
    chosen = settings.model_copy(update={"endpoint_decimals": 1, "endpoint_top_k": 3})  # it has three classes
    async with endpoint(chosen, store, publish_version(store, "4"), tmp_path) as inside:
        told = (await inside.client.post(INFER, json=BODY)).json()["outputs"]
    np.testing.assert_allclose(told[-1]["data"], LinearModel(4).outputs(ROWS[:1])[0].round(1), atol=1e-6)


def test_the_likeliest_classes_alone_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Of each row, and of each token, so many; vectors and predicted numbers are no classes; none at all is refused."""
    told = Disclosure(top=2, decimals=1)
    rows = np.array([[0.11, 3.0, -1.0, 2.0], [5.0, 5.0, 5.0, 4.0]], dtype=np.float32)
    answer = told.answers({"label": ["b", "a"], "outputs": rows})["outputs"]
    assert np.array_equal(answer, np.array([[UNTOLD, 3, UNTOLD, 2], [5, 5, UNTOLD, UNTOLD]], dtype=np.float32))
    tokens = told.answers({"tag": np.zeros((1, 2), np.int64), "outputs": rows[None]})["outputs"]
    assert np.array_equal(tokens, np.asarray(answer)[None])
    assert b"null" not in orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
    vectors = told.answers({"embedding": rows, "outputs": rows})["outputs"]
    assert np.array_equal(vectors, rows.round(1))
    assert np.array_equal(Disclosure(top=9).answers({"label": ["b", "a"], "outputs": rows})["outputs"], rows)
    monkeypatch.setenv("MODELYARD_ENDPOINT_TOP_K", "0")
    with pytest.raises(ConfigError, match="ENDPOINT_TOP_K"):
        load_settings(home=tmp_path)
