"""Fixtures of the end-to-end tests. Prefect is imported inside them: pytest loads this file before the environment of
the test installation is set, and Prefect reads its settings at import."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from modelyard.sample_data import digits_parquet
from modelyard.storage import Store
from tests.conftest import Installation

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient


@pytest.fixture(scope="session")
def digits(stack: Installation) -> str:
    """The digits in the bucket, as a user would have them."""
    store = Store(stack.settings)
    for name, body in digits_parquet():
        store.put(f"{store.root}/raw/digits/{name}", body)
    return f"{store.root}/raw/digits/*.parquet"


@pytest.fixture(scope="session")
def last_run(stack: Installation, digits: str) -> dict:
    """What `modelyard run` left, of a network of its own: a first run whatever ran before on the same stack."""
    from tests.e2e.driving import OWN, modelyard

    ran = modelyard("run", "digits", "--set", *OWN)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "prediction" in ran.stdout
    return json.loads((stack.home / "last-run.json").read_text())


@pytest.fixture
def prefect_client(stack: Installation) -> Iterator[SyncPrefectClient]:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        yield client
