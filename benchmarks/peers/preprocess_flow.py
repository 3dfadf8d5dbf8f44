"""The same preprocessing as `preprocess_ours`, by its flow on the stack of the environment: ... preprocess_flow IN MEASURED.

The file MEASURED then says what the flow took, as a process calls it that has imported everything: wall and CPU seconds.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import yaml

from benchmarks.peers.preprocess_ours import CONFIG


def main(source: str, measured: str) -> None:
    from mlflow.tracking import MlflowClient  # noqa: F401  (else the first call would import it)

    from flows.preprocess import preprocess

    preset = {
        "model_name": "bench",
        "dataset_uri": f"file://{Path(source).absolute()}",
        "preprocess": CONFIG.model_dump(mode="json", exclude_unset=True),
    }
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(preset, file)
        file.flush()
        began, cpu = time.perf_counter(), time.process_time()
        print(preprocess(file.name).headline)
        took = {"work": time.perf_counter() - began, "work cpu": time.process_time() - cpu}
    Path(measured).write_text(json.dumps(took))


if __name__ == "__main__":
    main(*sys.argv[1:])
