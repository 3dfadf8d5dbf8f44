"""Versions that pass their golden rows and are bad all the same, and rollouts of them on an endpoint."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from modelyard import transitions
from modelyard.gates import RolloutPolicy
from modelyard.revisions import Decision, Revision, ServedVersion, propose_revision, revisions_since
from modelyard.storage import Store
from tests.serve.packages import NUM_CLASSES, WIDTH, LinearModel

ODD_ROW = [-10.0, 0.0, 0.0, 0.0]


class OddModel(LinearModel):
    """Answers NaN where the first raw feature is below -5; golden rows never are."""

    shift = 3.0  # of the transformed feature: from minus this on there is a root

    def save(self, path: Path) -> None:
        _save(
            self,
            path,
            [
                helper.make_node("Gemm", ["x", "w", "b"], ["linear"]),
                helper.make_node("Slice", ["x", "from", "to", "axis"], ["first"]),
                helper.make_node("Add", ["first", "shift"], ["shifted"]),
                helper.make_node("Sqrt", ["shifted"], ["root"]),
                helper.make_node("Mul", ["root", "zero"], ["nothing"]),
                helper.make_node("Add", ["linear", "nothing"], ["y"]),
            ],
            {"from": [0], "to": [1], "axis": [1]},
            {"shift": np.float32(self.shift), "zero": np.float32(0)},
        )


class SeldomOddModel(OddModel):
    """Answers NaN where the first raw feature is below -25."""

    shift = 13.0


class NoModel(LinearModel):
    """A file that no engine can read."""

    def save(self, path: Path) -> None:
        path.write_bytes(b"no model at all")


class SlowModel(LinearModel):
    """Multiplies large matrices on its way to the same answer."""

    def save(self, path: Path) -> None:
        size = 2000
        _save(
            self,
            path,
            [
                helper.make_node("Gemm", ["x", "w", "b"], ["linear"]),
                helper.make_node("ReduceSum", ["x", "axis"], ["sum"], keepdims=1),
                helper.make_node("Mul", ["sum", "wide"], ["spread"]),
                *(
                    helper.make_node("MatMul", ["spread" if n == 0 else f"m{n}", "big"], [f"m{n + 1}"])
                    for n in range(8)
                ),
                helper.make_node("ReduceSum", ["m8", "axis"], ["nothing"], keepdims=1),
                helper.make_node("Mul", ["nothing", "zero"], ["none"]),
                helper.make_node("Add", ["linear", "none"], ["y"]),
            ],
            {"axis": [1]},
            {
                "wide": np.full((1, size), 1e-6, np.float32),
                "big": np.full((size, size), 1e-6, np.float32),
                "zero": np.float32(0),
            },
        )


class SlowToLoad(LinearModel):
    """Takes seconds for its first answer, as for every other: a thousand large products, one after another."""

    size, times = 1000, 1000

    def save(self, path: Path) -> None:
        size = self.size
        matrix = helper.make_tensor_value_info("product", TensorProto.FLOAT, [size, size])
        step = helper.make_graph(
            [
                helper.make_node("MatMul", ["before", "big"], ["product"]),
                helper.make_node("Identity", ["goes_on"], ["goes_on_still"]),
            ],
            "step",
            [
                helper.make_tensor_value_info("number", TensorProto.INT64, []),
                helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
                helper.make_tensor_value_info("before", TensorProto.FLOAT, [size, size]),
            ],
            [helper.make_tensor_value_info("goes_on_still", TensorProto.BOOL, []), matrix],
        )
        _save(
            self,
            path,
            [
                helper.make_node("Gemm", ["x", "w", "b"], ["linear"]),
                helper.make_node("Loop", ["times", "", "big"], ["last"], body=step),
                helper.make_node("ReduceSum", ["last"], ["sum"], keepdims=0),
                helper.make_node("Mul", ["sum", "zero"], ["nothing"]),
                helper.make_node("Add", ["linear", "nothing"], ["y"]),
            ],
            {"times": [self.times]},
            {"big": np.full((size, size), 1e-6, np.float32), "zero": np.float32(0)},
        )


def _save(
    model: LinearModel, path: Path, nodes: list[Any], integers: dict[str, list[int]], floats: dict[str, Any]
) -> None:
    constants = [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in integers.items()]
    constants += [numpy_helper.from_array(np.array(value, np.float32), name) for name, value in floats.items()]
    graph = helper.make_graph(
        nodes,
        "canary",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", NUM_CLASSES])],
        [numpy_helper.from_array(model.weight, "w"), numpy_helper.from_array(model.bias, "b"), *constants],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)


def begin(store: Store, endpoint: str, canary: ServedVersion, policy: RolloutPolicy, model: str = "digits") -> Revision:
    """What the rollout stage writes: a canary beside what serves."""
    rollout_id = uuid4().hex[:16]
    return propose_revision(
        store,
        endpoint,
        lambda current: transitions.begin(current, model, canary, policy, rollout_id),
        reason=f"roll out version {canary.version}",
        author="pytest",
        decision=Decision(model=model, action="start", version=canary.version, rollout_id=rollout_id),
    )


def decisions(store: Store, endpoint: str, after: int = 0) -> list[Decision]:
    return [revision.decision for revision in revisions_since(store, endpoint, after) if revision.decision]


def actions(store: Store, endpoint: str, after: int = 0) -> Sequence[str]:
    return [decision.action for decision in decisions(store, endpoint, after)]


def until_decided(store: Store, endpoint: str, after: int, seconds: float = 30) -> Decision:
    """The decision that ends the rollout begun in revision ``after``."""
    return until_found(
        lambda: next(
            (one for one in decisions(store, endpoint, after) if one.action in ("promote", "roll_back", "give_up")),
            None,
        ),
        seconds,
    )


def until_found(find: Callable[[], Any], seconds: float) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (found := find()) is not None:
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s")
