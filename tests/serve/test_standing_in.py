"""Another version answers for one whose worker is away. The app runs in this process, its workers and store are real."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np

from modelyard.settings import Settings
from modelyard.storage import Store
from modelyard.transform import Category, FittedTransform
from tests.serve.inprocess import endpoint
from tests.serve.packages import MIXED, LinearModel, publish_version

# The same columns as `MIXED`; what is 0 there is 1 here.
TURNED = FittedTransform(
    features=[Category(kind="one_hot", name="colour", values=["red", "blue"]), *MIXED.features[1:]]
)
COLUMNS = {"colour": ["red", "blue", "green"], "size": [1.0, 2.0, None], "weight": [3.0, 4.0, 5.0]}


async def test_a_version_reads_the_request_itself(settings: Settings, store: Store, tmp_path: Path):
    """Categories are coded by the version that answers, not by the one that died over the request; nor is a request that
    the stand-in cannot read a 500."""
    stable, canary = (
        publish_version(store, "1", weight=50, transform=MIXED),
        publish_version(store, "2", weight=50, transform=TURNED),
    )
    expected = LinearModel(2).outputs(TURNED.rows(COLUMNS), TURNED)
    bounds = {"respawn_seconds": (30.0, 30.0)}
    async with endpoint(settings, store, stable, tmp_path, [canary], **bounds) as inside:
        versions = (await inside.client.get("/admin/status")).json()["models"]["digits"]["versions"]
        os.kill(next(one["worker_pid"] for one in versions if one["version"] == "1"), signal.SIGKILL)
        answers = [await inside.client.post("/invocations", json={"inputs": COLUMNS}) for _ in range(12)]
        refused = [await inside.client.post("/invocations", json={"inputs": {"colour": ["red"]}}) for _ in range(6)]
    names = np.array(["ant", "bee", "cat"])
    for answer in answers:
        assert answer.headers["modelyard-model-version"] == "2"
        assert [one["label"] for one in answer.json()["predictions"]] == names[expected.argmax(axis=1)].tolist()
    assert {answer.status_code for answer in refused} == {400}
