"""Another version answers for one whose worker is away. The app runs in this process, its workers and store are real."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from modelyard.settings import Settings
from modelyard.storage import Store
from tests.serve.inprocess import endpoint
from tests.serve.load import BODY
from tests.serve.packages import MIXED, MIXED_ROWS, NUM_CLASSES, ROWS, TURNED, WIDTH, LinearModel, publish_version


async def test_a_version_reads_the_request_itself(settings: Settings, store: Store, tmp_path: Path):
    """Categories are coded by the version that answers, not by the one that died over the request; nor is a request that
    the stand-in cannot read a 500."""
    stable, canary = (
        publish_version(store, "1", weight=50, transform=MIXED),
        publish_version(store, "2", weight=50, transform=TURNED),
    )
    expected = LinearModel(2).outputs(TURNED.rows(MIXED_ROWS), TURNED)
    bounds = {"respawn_seconds": (30.0, 30.0)}
    async with endpoint(settings, store, stable, tmp_path, [canary], **bounds) as inside:
        versions = (await inside.client.get("/admin/status")).json()["models"]["digits"]["versions"]
        os.kill(next(one["worker_pid"] for one in versions if one["version"] == "1"), signal.SIGKILL)
        answers = [await inside.client.post("/invocations", json={"inputs": MIXED_ROWS}) for _ in range(12)]
        refused = [await inside.client.post("/invocations", json={"inputs": {"colour": ["red"]}}) for _ in range(6)]
    names = np.array(["ant", "bee", "cat"])
    for answer in answers:
        assert answer.headers["modelyard-model-version"] == "2"
        assert [one["label"] for one in answer.json()["predictions"]] == names[expected.argmax(axis=1)].tolist()
    assert {answer.status_code for answer in refused} == {400}


class HungryModel(LinearModel):
    """Fills as many floats as the largest of its inputs says before it answers."""

    def save(self, path: Path) -> None:
        weights = [numpy_helper.from_array(self.weight, "w"), numpy_helper.from_array(self.bias, "b")]
        nodes = [
            helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=1),
            helper.make_node("Relu", ["largest"], ["positive"]),
            helper.make_node("Cast", ["positive"], ["whole"], to=TensorProto.INT64),
            helper.make_node("Reshape", ["whole", "one"], ["size"]),
            helper.make_node("ConstantOfShape", ["size"], ["filled"]),
            helper.make_node("ReduceSum", ["filled"], ["nothing"], keepdims=0),
            helper.make_node("Gemm", ["x", "w", "b"], ["answer"]),
            helper.make_node("Add", ["answer", "nothing"], ["y"]),
        ]
        graph = helper.make_graph(
            nodes,
            "hungry",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", WIDTH])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", NUM_CLASSES])],
            [*weights, numpy_helper.from_array(np.array([1]), "one")],
        )
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)


async def test_a_worker_that_takes_all_memory_costs_no_request(
    settings: Settings, store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """It is ended at the bound, another version answers what it owed, neighbours are answered, and it is started again."""
    stable, hungry = publish_version(store, "1", weight=1), publish_version(store, "2", weight=99, kind=HungryModel)
    own = settings.model_copy(update={"endpoint_worker_mb": 500})
    feast = [*ROWS[0].tolist()[:-1], 1e9]  # 2 GB
    tensor = {"name": "features", "datatype": "FP64", "shape": [1, WIDTH], "data": feast}
    async with endpoint(own, store, stable, tmp_path, [hungry]) as inside:
        inside.app.inferences.router._chance = random.Random(0)  # the first draw is for version 2
        asked = (
            inside.client.post("/v2/models/digits/infer", json={"inputs": [tensor]}),
            *(inside.client.post("/v2/models/digits/infer", json=BODY) for _ in range(8)),
        )
        large, *small = await asyncio.gather(*asked)
        again = await inside.client.post("/v2/models/digits/versions/2/infer", json=BODY)
    assert (large.status_code, large.headers["modelyard-model-version"]) == (200, "1")
    assert {one.status_code for one in [*small, again]} == {200}
    assert "MB of memory, and is killed" in caplog.text
