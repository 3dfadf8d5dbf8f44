"""Our own preprocessing of a local folder, into the store of the environment: ... preprocess_ours IN [MEASURED].

The file MEASURED then says what the work took without the process's start: wall and CPU seconds.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from benchmarks.tables import HIGH, LOW, NUMBERS
from modelyard.catalog import Catalog, Origin
from modelyard.preprocess import PreprocessConfig, SplitConfig, preprocess, snapshot
from modelyard.settings import load_settings
from modelyard.storage import Store

CONFIG = PreprocessConfig(
    target="y",
    features=list(NUMBERS),
    ranges={"*": (LOW, HIGH)},
    keep=["id", "city", "code"],
    split=SplitConfig(),
)


def main(source: str, measured: str | None = None) -> None:
    began, cpu = time.perf_counter(), time.process_time()
    catalog, origin = Catalog(Store(load_settings())), Origin()
    taken = snapshot(catalog, f"file://{Path(source).absolute()}", origin)
    print(preprocess(catalog, taken.ref, CONFIG, origin).manifest.content.facts)
    if measured:
        took = {"work": time.perf_counter() - began, "work cpu": time.process_time() - cpu}
        Path(measured).write_text(json.dumps(took))


if __name__ == "__main__":
    main(*sys.argv[1:])
