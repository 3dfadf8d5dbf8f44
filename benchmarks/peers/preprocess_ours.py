"""Our own preprocessing of a local folder, into the store of the environment: ... preprocess_ours IN."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.tables import HIGH, LOW, NUMBERS
from modelyard.catalog import Catalog, Origin
from modelyard.preprocess import PreprocessConfig, SplitConfig, preprocess, snapshot
from modelyard.settings import load_settings
from modelyard.storage import Store


def main(source: str) -> None:
    catalog, origin = Catalog(Store(load_settings())), Origin()
    config = PreprocessConfig(
        target="y",
        features=list(NUMBERS),
        ranges={"*": (LOW, HIGH)},
        keep=["id", "city", "code"],
        split=SplitConfig(),
    )
    taken = snapshot(catalog, f"file://{Path(source).absolute()}", origin)
    print(preprocess(catalog, taken.ref, config, origin).manifest.content.facts)


if __name__ == "__main__":
    main(sys.argv[1])
