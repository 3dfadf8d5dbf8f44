"""Our own verdict on a candidate and a champion: ... evaluate_ours DATASET CANDIDATE CHAMPION RESAMPLES (digests)."""

from __future__ import annotations

import sys

from modelyard.catalog import Catalog, Origin
from modelyard.evaluate import EvaluateConfig, evaluate
from modelyard.settings import load_settings
from modelyard.storage import Store


def main(dataset: str, candidate: str, champion: str, resamples: int) -> None:
    catalog = Catalog(Store(load_settings()))
    refs = [catalog.resolve(name) for name in (candidate, dataset, champion)]
    config = EvaluateConfig(floor=0, slices=("region",), resamples=resamples)
    print(evaluate(catalog, *refs, config, Origin()).manifest.content.facts["interval"])


if __name__ == "__main__":
    main(*sys.argv[1:4], int(sys.argv[4]))
