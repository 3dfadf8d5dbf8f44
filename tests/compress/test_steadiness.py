"""A search decides the same again, whatever else the machine does."""

from __future__ import annotations

import pytest

from benchmarks.compress_steady import busy
from modelyard.compress import (
    Budget,
    CompressConfig,
    DropLimit,
    HalfWeights,
    LowRank,
    MeasureConfig,
    SearchConfig,
    StaticInt8,
    compress,
)
from modelyard.settings import Settings
from modelyard.storage import Store
from tests.workbench import ORIGIN, digits_dataset, own_catalog, quick_model

SEARCHES = 10
SEARCH = SearchConfig(
    budget=Budget(max_drop={"accuracy": DropLimit(absolute=0.06)}),
    networks=[LowRank(energy=0.9)],
    forms=[StaticInt8(), HalfWeights()],
)


@pytest.mark.soak
def test_ten_searches_have_one_winner(store: Store, settings: Settings):
    """Ten searches beside two processes that compute. What was built is found again, as always; every one measures anew."""
    del store
    catalog = own_catalog(settings)
    dataset = digits_dataset(catalog)
    model = quick_model(catalog, dataset, epochs=30)
    found = []
    for number in range(SEARCHES):
        config = CompressConfig(search=SEARCH, measure=MeasureConfig(repeats=200 + number))
        with busy():
            product = compress(catalog, model, dataset, config, ORIGIN)
        assert not product.reused
        found.append(product.manifest.provenance.measurements["search"])
    seen = [
        {one["name"]: one["measured"]["latency"]["1"] for one in search["candidates"] if one["measured"]}
        for search in found
    ]
    assert len({str(latencies) for latencies in seen}) == SEARCHES, "each was measured for itself"
    assert len({search["winner"] for search in found}) == 1, seen
