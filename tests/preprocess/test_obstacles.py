"""What may happen between a data set's files and whoever reads them: throttling, cut connections, no right to read."""

from __future__ import annotations

import os
import re
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Catalog
from modelyard.errors import DataError, StoreRefused, StoreUnavailable
from modelyard.preprocess import PreprocessConfig, preprocess, snapshot
from modelyard.preprocess.locations import find, stream
from modelyard.settings import Settings
from modelyard.storage import Store
from tests.fronts import REFUSAL, SLOW_DOWN, Front, front
from tests.workbench import ORIGIN, blobs, csv_bytes, own_catalog, upload

CONFIG = PreprocessConfig(target="kind")
FILE = re.compile(rb"GET /[^ ]+/big\.csv")
NOBODY = 65534


@pytest.fixture
def store_front(settings: Settings) -> Generator[Front]:
    with front(settings.store_port) as opened:
        yield opened


@pytest.fixture
def fronted(catalog: Catalog, settings: Settings, store_front: Front) -> Catalog:
    """Another empty catalog in the same store, behind the front."""
    del catalog  # the store runs
    return own_catalog(
        settings.model_copy(
            update={"s3_endpoint_url": f"http://127.0.0.1:{store_front.port}", "s3_timeout_seconds": 2.0}
        )
    )


def test_a_throttling_store_and_a_cut_connection_cost_time_and_nothing_else(
    catalog: Catalog, fronted: Catalog, store_front: Front
):
    """503 Slow Down twice, then the connection ends in the middle of the file: the data set is that of a quiet store."""
    uri = upload(catalog.store, {"big.csv": csv_bytes(blobs(60_000))})
    quiet = preprocess(catalog, snapshot(catalog, uri, ORIGIN).ref, CONFIG, ORIGIN)
    taken = snapshot(fronted, uri, ORIGIN)
    store_front.refuses, store_front.refusal, store_front.refusals = FILE, SLOW_DOWN, 2
    store_front.cut_after = 500_000
    made = preprocess(fronted, taken.ref, CONFIG, ORIGIN)
    assert store_front.refusals == 0
    assert store_front.cut_after > 500_000, "nothing was cut"
    assert made.ref.digest == quiet.ref.digest


def test_a_store_that_goes_on_throttling_is_transient_and_one_that_refuses_is_not(
    catalog: Catalog, fronted: Catalog, store_front: Front
):
    """The sentence names the file; nothing is committed."""
    uri = upload(catalog.store, {"big.csv": csv_bytes(blobs(100))})
    ref: ArtifactRef = snapshot(fronted, uri, ORIGIN).ref
    store_front.refuses, store_front.refusal = FILE, SLOW_DOWN
    with pytest.raises(StoreUnavailable, match=r"big\.csv"):
        preprocess(fronted, ref, CONFIG, ORIGIN)
    store_front.refusal = REFUSAL
    with pytest.raises(StoreRefused, match=r"big\.csv: the store refused the credentials"):
        preprocess(fronted, ref, CONFIG, ORIGIN)
    assert list(fronted.store.list(f"{fronted.store.root}/artifacts/dataset")) == []


@contextmanager
def as_nobody() -> Generator[None]:
    """Who runs the tests as root may read everything."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)


def test_local_files_that_may_not_be_read_are_named(store: Store):
    """A file, and a folder inside that would otherwise be left out without a word."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "p.csv").write_bytes(csv_bytes(blobs(50)))
        info = find(store, f"file://{folder}")[0]
        (folder / "p.csv").chmod(0)
        with as_nobody(), pytest.raises(DataError, match=r"file:///.*/p\.csv: may not be read by the user"):
            list(stream(store, info))
        (folder / "inner").mkdir(mode=0)
        with as_nobody(), pytest.raises(DataError, match=r"file:///.*/inner: may not be read by the user"):
            find(store, f"file://{folder}")
