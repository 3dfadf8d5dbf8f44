"""How soon a large version gets its first request: from the start of its rollout, beyond the verification of its bytes.

    python -m benchmarks.endpoint_takeover <model> <candidate> <verdict>    rolls out, and prints when it began

The rollout runs in a process of its own, as a flow's does; the endpoint is the stack's, under a light load all the while.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import httpx
import numpy as np
import onnx
import orjson
from onnx import TensorProto, helper, numpy_helper

from benchmarks.figures import Figure, Findings
from commands.environment import PROJECT
from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Attempt, Catalog, Origin, Work, file_sha256
from modelyard.gates import RolloutPolicy
from modelyard.model_package import PACKAGE_FILE, TRANSFORM_FILE, PackageSpec
from modelyard.rollout import RolloutConfig, rollout
from modelyard.runtime import RuntimeSpec
from modelyard.serve.probe import GOLDEN_FILE
from modelyard.serve.verifier import Verifier
from modelyard.settings import Settings, load_settings
from modelyard.storage import Store
from modelyard.task_kinds import Target
from modelyard.tracking import Tracker
from modelyard.transform import FeatureScale, FittedTransform

MODEL, WIDTH, LAYERS = "heavy", 1500, 10  # 10 matrices of 1500 x 1500 single floats are 90 MB
BOUND_SECONDS, ROLLOUT_SECONDS, PAUSE_SECONDS = 2.0, 120, 0.01
# Half of the requests at once, promoted after some of them: what follows the first one is not the matter here.
POLICY = {
    "steps": [50, 100],
    "min_requests": 20,
    "min_seconds": 0,
    "replay": {"enabled": False},
    "gates": {"latency": False, "max_error_rate": 0.5},
}
NOTE = (
    f"A version of {4 * LAYERS * WIDTH**2 / 1e6:.0f} MB takes over from another one of its size, 100 requests a second meanwhile:"
    " from the call of the core's rollout (signing and registering included, in a process of its own, its imports done) until"
    " the first request was sent that the canary answered. Taken off is what checking the signatures and the sha256 of all"
    " its files takes, measured on the endpoint's own copy right afterwards."
)


def measure(settings: Settings, rounds: int) -> Findings:
    """Versions one after another; the first has nothing to take over from, and is not counted."""
    catalog = Catalog(Store(settings))
    beyond: list[float] = []
    whole: list[float] = []
    verifying: list[float] = []
    for number in range(rounds + 1):
        candidate, verdict = _publish(catalog, number)
        if number == 0:
            _roll_out(candidate, verdict)
            continue
        with _Asking(settings) as asking:
            began = _roll_out(candidate, verdict)
        whole.append(asking.first_of(candidate) - began)
        verifying.append(_verification_seconds(settings, candidate, verdict))
        beyond.append(whole[-1] - verifying[-1])
    return Findings(
        figures=[
            _figure("from the start of a rollout to the canary's first request, beyond verification", beyond,
                    "the bound", [BOUND_SECONDS] * rounds, target=1.0),
            _figure("from the start of a rollout to the canary's first request", whole, "its verification", verifying),
        ],
        notes=[NOTE],
    )  # fmt: skip


def _figure(
    name: str, values: Sequence[float], against: str, reference: Sequence[float], target: float | None = None
) -> Figure:
    return Figure(
        name=name, subject="endpoint, 90 MB", against=against, unit="s", better="less",
        values=values, reference=reference, target=target,
    )  # fmt: skip


# -- versions ---------------------------------------------------------------------------------------------


def _publish(catalog: Catalog, seed: int) -> tuple[ArtifactRef, ArtifactRef]:
    """A package of one large perceptron, and a verdict with its golden rows."""
    rng = np.random.default_rng(seed)
    matrices = [rng.normal(0, WIDTH**-0.5, (WIDTH, WIDTH)).astype(np.float32) for _ in range(LAYERS)]
    transform = FittedTransform(features=[FeatureScale(name=f"x{n}", offset=0.0, scale=1.0) for n in range(WIDTH)])
    spec = PackageSpec(
        target=Target(column="label", classes=list(range(WIDTH))),
        forms={"float": RuntimeSpec(file="model.onnx", precision="fp32")},
        default_form="float",
    )

    def build(attempt: Attempt) -> None:
        _save(matrices, attempt.scratch / "model.onnx")
        attempt.add("model.onnx", attempt.scratch / "model.onnx")
        attempt.add_json(PACKAGE_FILE, spec.model_dump(mode="json"))
        attempt.add_json(TRANSFORM_FILE, transform.model_dump(mode="json"))

    work = Work(kind="compressed", config={"seed": seed}, inputs={}, code_version="benchmark")
    candidate = catalog.produce(work, build, Origin()).ref
    rows = rng.normal(size=(4, WIDTH)).round(3)
    outputs = rows.astype(np.float32)
    for matrix in matrices:
        outputs = np.maximum(outputs @ matrix, 0)
    golden = {"rows": rows.tolist(), "outputs": outputs.tolist(), "tolerance": 0.01, "form": "float"}

    def judge(attempt: Attempt) -> None:
        attempt.add_json(GOLDEN_FILE, golden)
        attempt.facts.update(passed=True, reasons=[])

    work = Work(kind="verdict", config={"seed": seed}, inputs={"candidate": candidate}, code_version="benchmark")
    return candidate, catalog.produce(work, judge, Origin()).ref


def _save(matrices: Sequence[np.ndarray], path: Path) -> None:
    nodes, shape = [], ["n", WIDTH]
    for number in range(len(matrices)):
        before, after = f"h{number}" if number else "x", "y" if number == len(matrices) - 1 else f"h{number + 1}"
        nodes += [
            helper.make_node("MatMul", [before, f"w{number}"], [f"m{number}"]),
            helper.make_node("Relu", [f"m{number}"], [after]),
        ]
    graph = helper.make_graph(
        nodes,
        "heavy",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(matrix, f"w{number}") for number, matrix in enumerate(matrices)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)


# -- rolling out, and asking meanwhile --------------------------------------------------------------------


def _roll_out(candidate: ArtifactRef, verdict: ArtifactRef) -> float:
    """In a process of its own, to the end; when it began, seconds since the epoch."""
    names = [MODEL, candidate.digest, verdict.digest]
    command = [sys.executable, "-m", "benchmarks.endpoint_takeover", *names]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=ROLLOUT_SECONDS, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}:\n{done.stderr[-3000:]}")
    return float(done.stdout.split()[-1])


def main(model: str, candidate: str, verdict: str) -> None:
    settings = load_settings()
    catalog, tracker = Catalog(Store(settings)), Tracker(settings)
    refs = catalog.resolve(candidate), catalog.resolve(verdict)
    config = RolloutConfig(policy=RolloutPolicy.model_validate(POLICY))
    tracker.version_by_alias(model, "champion")  # imports MLflow, as a flow has by then: its stage's run has begun
    began = time.time()
    rollout(
        catalog,
        tracker,
        settings,
        model_name=model,
        candidate=refs[0],
        verdict=refs[1],
        config=config,
        origin=Origin(),
    )
    print(began)


class _Asking:
    """One request after another in a thread; remembers when the first was sent that each artifact answered."""

    def __init__(self, settings: Settings) -> None:
        self._first: dict[str, float] = {}
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._ask, args=[f"{settings.serving_url}/v2/models/{MODEL}/infer"])

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._is_over.set()
        self._thread.join()

    def first_of(self, artifact: ArtifactRef) -> float:
        """Seconds since the epoch."""
        return self._first[artifact.digest]

    def _ask(self, url: str) -> None:
        tensor = {"name": "features", "shape": [1, WIDTH], "datatype": "FP32", "data": [0.5] * WIDTH}
        body = orjson.dumps({"inputs": [tensor]})
        with httpx.Client(trust_env=False, timeout=10) as client:
            while not self._is_over.wait(PAUSE_SECONDS):
                sent = time.time()
                answer = client.post(url, content=body, headers={"content-type": "application/json"})
                answer.raise_for_status()
                self._first.setdefault(answer.headers["Modelyard-Artifact-Digest"], sent)


def _verification_seconds(settings: Settings, *artifacts: ArtifactRef) -> float:
    """As the endpoint does it: signatures in a process that is started for it, then each file's sha256."""
    began = time.perf_counter()
    verifier = Verifier(settings.trusted_keys_folder)
    try:
        for ref in artifacts:
            folder = settings.home / "endpoint" / "cache" / ref.digest
            verifier.check(folder)
            for file in folder.glob("*"):
                if file.is_file():
                    file_sha256(file)
    finally:
        verifier.close()
    return time.perf_counter() - began


if __name__ == "__main__":
    main(*sys.argv[1:])
