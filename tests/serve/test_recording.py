"""The prediction log: what is kept, what is left out, and what happens when there is no room for it."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from io import BytesIO
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from modelyard.errors import ConfigError
from modelyard.serve.limits import Limits
from modelyard.serve.recording import Recorder
from modelyard.settings import Settings, load_settings
from modelyard.storage import Store
from tests.serve.inprocess import Inside, endpoint
from tests.serve.packages import COLUMNS, ROWS, LinearModel, publish_version

INFER = "/v2/models/digits/infer"


def logged(store: Store, name: str) -> pd.DataFrame:
    """Every file of an endpoint's log, joined."""
    files = [store.get(info.uri) for info in store.list(f"{store.root}/predictions/{name}")]
    return pd.concat([pd.read_parquet(BytesIO(body)) for body in files], ignore_index=True)


async def ask(inside: Inside, rows: np.ndarray) -> httpx.Response:
    tensor = {"name": "features", "datatype": "FP64", "shape": list(rows.shape), "data": rows.tolist()}
    return await inside.client.post(INFER, json={"inputs": [tensor]})


async def settled(inside: Inside) -> Recorder:
    recorder = inside.app.inferences.recorder
    assert recorder
    await recorder.close()
    assert recorder._started.process.poll() == 0
    return recorder


async def test_answers_are_kept_without_what_is_redacted(settings: Settings, store: Store, tmp_path: Path):
    """Request id, inputs, outputs, version and latency of every answer, whatever the protocol; a redacted column and
    output never get there; refused requests have no answer to keep."""
    chosen = settings.model_copy(update={"endpoint_record": 1.0, "endpoint_redact": "feature_2, probability"})
    async with endpoint(chosen, store, publish_version(store, "4"), tmp_path, record_seconds=60) as inside:
        first = await ask(inside, ROWS[:3])
        records = {"dataframe_records": [dict(zip(COLUMNS, row, strict=True)) for row in ROWS[3:5].tolist()]}
        second = await inside.client.post("/invocations", json=records)
        assert (await inside.client.post(INFER, json={"inputs": []})).status_code == 400
        page = (await inside.client.get("/metrics")).text
        await settled(inside)
        table = logged(store, inside.settings.endpoint_name)
    assert "modelyard_predictions_recorded_total 2.0" in page
    ids = [response.headers["Modelyard-Request-Id"] for response in (first, second)]
    assert table["request_id"].tolist() == [ids[0]] * 3 + [ids[1]] * 2
    assert table["row"].tolist() == [0, 1, 2, 0, 1]
    kept = [name for name in COLUMNS if name != "feature_2"]
    assert [name for name in table if name.startswith("in.")] == [f"in.{name}" for name in kept]
    np.testing.assert_allclose(table[[f"in.{name}" for name in kept]], ROWS[:5][:, [0, 1, 3]])
    np.testing.assert_allclose(np.stack(table["out.outputs"]), LinearModel(4).outputs(ROWS[:5]), atol=1e-5)
    assert table["out.label"].tolist()[:3] == first.json()["outputs"][0]["data"]
    assert "out.probability" not in table
    assert set(table["version"]) == {"4"}
    assert (table["milliseconds"] > 0).all()
    [info] = store.list(f"{store.root}/predictions/{inside.settings.endpoint_name}")
    told = pq.read_schema(BytesIO(store.get(info.uri))).metadata
    assert told[b"modelyard.redacted"] == b"['feature_2', 'probability']"
    assert len(told[b"modelyard.digest"]) == 64


async def test_a_killed_process_is_started_again(settings: Settings, store: Store, tmp_path: Path):
    """kill -9 of who writes costs what it held, no answer, and nothing after it."""
    chosen = settings.model_copy(update={"endpoint_record": 1.0})
    async with endpoint(chosen, store, publish_version(store, "4"), tmp_path, record_seconds=60) as inside:
        assert (await ask(inside, ROWS[:1])).status_code == 200
        recorder = inside.app.inferences.recorder
        async with asyncio.timeout(60):
            while recorder._transport is None:  # noqa: ASYNC110 (no event announces it)
                await asyncio.sleep(0.01)
            first = recorder.pid
            os.kill(first, signal.SIGKILL)
            while recorder._transport is not None:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        later = await ask(inside, ROWS[:2])
        await settled(inside)
        last = recorder.pid
        assert last != first
        stable = inside.app.inferences.router.table.routes["digits"].stable
        recorder.offer(
            stable, "late", ROWS[:1], {}, 0.1
        )  # closed, it starts nothing for an answer that was drawn before
        assert (recorder.pid, recorder._starting) == (last, None)
        assert set(logged(store, inside.settings.endpoint_name)["request_id"]) == {
            later.headers["Modelyard-Request-Id"]
        }


async def test_what_finds_no_room_is_counted(settings: Settings, store: Store, tmp_path: Path):
    """With room for less than one request nothing is kept, everything is answered, and the metrics say so."""
    chosen = settings.model_copy(update={"endpoint_record": 1.0})
    version = publish_version(store, "4")
    async with endpoint(chosen, store, version, tmp_path, max_unrecorded_bytes=16) as inside:
        for _ in range(3):
            assert (await ask(inside, ROWS[:1])).status_code == 200
        page = (await inside.client.get("/metrics")).text
    assert "modelyard_predictions_dropped_total 3.0" in page
    assert "modelyard_predictions_recorded_total 0.0" in page


def test_a_share_is_drawn(settings: Settings):
    """Of 2,000 answers at 0.1, a number within 5 standard deviations of 200 is to be kept."""
    chosen = settings.model_copy(update={"endpoint_record": 0.1})
    recorder = Recorder(chosen, "here", Limits(), chance=random.Random(0))
    assert abs(sum(recorder.draws() for _ in range(2_000)) - 200) < 5 * (2_000 * 0.1 * 0.9) ** 0.5


def test_a_share_beyond_one_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The setting is named."""
    monkeypatch.setenv("MODELYARD_ENDPOINT_RECORD", "10")
    with pytest.raises(ConfigError, match="MODELYARD_ENDPOINT_RECORD"):
        load_settings(home=tmp_path)
